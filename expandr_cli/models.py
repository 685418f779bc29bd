"""The commands `expandr models`, `promote` and `rollback`: which models are the best, and since when."""

import getpass
import os
import platform
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from expandr_cli.terminal import StoreOption, absolute, out, printable, user_errors
from expandr_core.errors import DataError
from expandr_core.store.registered_model import CHAMPION, Author, RegisteredModel

app = typer.Typer()
ReasonOption = Annotated[
    str, typer.Option("--reason", "-m", help="Why; it is kept in the history.")
]
ModelOption = Annotated[
    str, typer.Option("--model", help="Name of the model; by default that of the run's collection.")
]


@app.command()
def models(
    model: Annotated[str, typer.Argument(help="Show the history of this one, too.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print all as JSON.")] = False,
    store: StoreOption = "store",
) -> None:
    """List the registered models: their versions, and which of them the aliases name."""
    with user_errors():
        from expandr_core.store.registry import registered
        from tasks.stage import open_store

        opened = open_store(absolute(store))
        found = registered(opened)
        if model and model not in found:
            names = ", ".join(sorted(found)) or "none"
            raise DataError(f"there is no model {model!r} in {opened.url}; there are: {names}")
        found = {model: found[model]} if model else found
        if as_json:
            dumped = {
                name: each.model_dump(mode="json", by_alias=True) for name, each in found.items()
            }
            out.print_json(data=dumped)
            return
        runs = {str(record["name"]) for record in opened.records()}
        for each in found.values():
            _print_model(out, each, runs)
            if model:
                _print_history(out, each)
        if not found:
            out.print(
                f"no models in {opened.url}; `expandr promote RUN` registers one", highlight=False
            )


@app.command()
def promote(
    run: Annotated[
        str, typer.Argument(help="Run, or the beginning of one, 'latest', or an alias.")
    ] = "latest",
    alias: Annotated[str, typer.Option("--as", help="Alias that names it from now on.")] = CHAMPION,
    model: ModelOption = "",
    reason: ReasonOption = "by hand",
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", help="NAME=VALUE, kept with the version; repeatable."),
    ] = None,
    store: StoreOption = "store",
) -> None:
    """Make the models of a run the champion, or give them another alias, without a test.

    `promotion.enabled` lets the loop test them against the champion first.
    """
    with user_errors():
        from expandr_core.store.registry import promote as promote_version
        from expandr_core.store.registry import read_model
        from flows.champions import named_after, version_of
        from flows.run_record import loop_run
        from tasks.stage import open_store

        opened = open_store(absolute(store))
        chosen, actor = loop_run(opened, run), _actor()
        pairs = [text.partition("=") for text in tags or []]
        if wrong := [name for name, equals, _ in pairs if not equals]:
            raise DataError(f"--tag {wrong[0]}: write it as NAME=VALUE")
        version = version_of(opened, chosen, actor, {name: value for name, _, value in pairs})
        named = model or named_after(chosen)
        before = read_model(opened, named)
        registered = promote_version(opened, named, version, alias, Author(actor, reason))
    _say(registered, alias, already=registered.history == before.history)


@app.command()
def rollback(
    model: Annotated[
        str, typer.Argument(help="Name of the model; needed if there are several.")
    ] = "",
    alias: Annotated[str, typer.Option("--as", help="Alias to move.")] = CHAMPION,
    to: Annotated[int, typer.Option(min=0, help="Version; by default the one before.")] = 0,
    reason: ReasonOption = "by hand",
    store: StoreOption = "store",
) -> None:
    """Let the champion, or another alias, name the version that it named before."""
    with user_errors():
        from expandr_core.store.registry import find_version, registered, roll_back
        from tasks.stage import open_store

        opened = open_store(absolute(store))
        found = find_version(opened, f"{model}/{alias}" if model else alias)
        if not found:
            named = [
                f"{each.name}/{a}" for each in registered(opened).values() for a in each.aliases
            ]
            raise DataError(
                f"there is no {f'{model}/' if model else 'alias '}{alias} in {opened.url}; there are: "
                f"{', '.join(named) or 'none; `expandr promote RUN` makes one'}"
            )
        registered = roll_back(opened, found[0], alias, Author(_actor(), reason), to)
    _say(registered, alias)


def _actor() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, a user often has a number only
        user = str(os.getuid())
    return f"{user}@{platform.node()}"


def _say(model: RegisteredModel, alias: str, already: bool = False) -> None:
    version, how = model.version(model.aliases[alias]), " already" if already else ""
    out.print(
        f"{model.name}/{alias} is version {version.number}{how}, of run {version.run}",
        highlight=False,
    )


def _print_model(out: Console, model: RegisteredModel, runs: set[str]) -> None:
    """Print the versions of a model, the newest last."""
    columns = ("version", "aliases", "run", "since", "LLM", "retriever", "tags")
    table = Table(*columns, title=model.name, title_justify="left", box=None)
    for version in model.versions:
        aliases = [name for name, number in model.aliases.items() if number == version.number]
        table.add_row(
            str(version.number),
            ", ".join(aliases),
            version.run if version.run in runs else f"{version.run} (removed)",
            f"{version.created:%Y-%m-%d %H:%M}",
            *(version.models[role].key[:-10] for role in ("llm", "retriever")),
            ", ".join(f"{name}={value}" for name, value in version.tags.items()),
        )
    out.print(table)


def _print_history(out: Console, model: RegisteredModel) -> None:
    """Print every move of an alias, the newest last."""
    for move in model.history:
        what = f"{move.alias}: version {move.after} {move.action}"
        before = f", in place of {move.before}" if move.before and move.action != "refused" else ""
        out.print(
            f"{move.at:%Y-%m-%d %H:%M}  {what}{before}, by {move.actor}: {printable(move.reason)}",
            highlight=False,
            soft_wrap=True,
        )
