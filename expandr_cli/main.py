"""The command line: `expandr --help`."""

from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from expandr_cli.ablate import app as ablate_command
from expandr_cli.cluster import app as cluster_commands
from expandr_cli.compare import app as compare_command
from expandr_cli.config_files import SeedOption, SetOption, load_options, said_of
from expandr_cli.evaluate import app as evaluate_command
from expandr_cli.explain import app as explain_command
from expandr_cli.export import app as export_commands
from expandr_cli.import_gguf import app as gguf_command
from expandr_cli.models import app as model_commands
from expandr_cli.plan import app as plan_command
from expandr_cli.report import app as report_command
from expandr_cli.serve import app as serve_command
from expandr_cli.terminal import (
    AGAIN,
    RESUME,
    StoreOption,
    absolute,
    fail,
    notify,
    out,
    user_errors,
)
from expandr_core.options.loop import JointLoopOptions
from flows.presets import CONFIGS

app = typer.Typer(
    name="expandr",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Align a language model and a dense retriever with each other, round after round.

    Start with `expandr demo`. Then write a config for your own data (see configs/) and `expandr run` it.
    Every result is an artifact in the store, so interrupted and repeated runs continue from there.""",
)
app.add_typer(export_commands)
app.add_typer(gguf_command)
app.add_typer(model_commands)
app.add_typer(evaluate_command)
app.add_typer(plan_command)
app.add_typer(ablate_command)
app.add_typer(explain_command)
app.add_typer(compare_command)
app.add_typer(report_command)
app.add_typer(serve_command)
app.add_typer(cluster_commands)


def _say_version(wanted: bool) -> None:
    if wanted:
        names = {"expandr": "expandr-on-prefect", "Prefect": "prefect"}
        versions = (f"{name} {metadata.version(of)}" for name, of in names.items())
        out.print(*versions, sep=", ", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Print the versions."),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    config: Annotated[
        Path, typer.Argument(help="YAML file of options; all others keep their defaults.")
    ],
    store: StoreOption = "store",
    seed: SeedOption = None,
    changes: SetOption = None,
) -> None:
    """Run the joint loop as CONFIG says, and print the results.

    After a crash or a kill, run it again: every finished stage and shard is reused from the store.
    """
    said = [str(config), *said_of(seed, changes)]
    _run_loop(load_options(config, seed, changes or []), store, said)


@app.command()
def demo(store: StoreOption = "store", seed: SeedOption = None, changes: SetOption = None) -> None:
    """Run the joint loop on a small built-in world: minutes on two cores, no network, no GPU."""
    config = CONFIGS / "demo.yaml"
    if not config.is_file():
        fail(
            f"{config} is missing; install from a clone, with `make install` or `pip install -e .`"
        )
    said = ["demo", *said_of(seed, changes)]
    _run_loop(load_options(config, seed, changes or []), store, said)
    out.print(
        "\nThis is a demonstration: an invented world and models of a million parameters, which "
        "show the mechanism\nand not the paper's numbers. Another world: --seed 1."
    )


@app.command()
def runs(
    store: StoreOption = "store",
    limit: Annotated[int, typer.Option(min=1, help="How many of the latest runs to list.")] = 30,
) -> None:
    """List the runs in the store with their results, active and failed ones included.

    The preset is what a run's options started from: one of the project's, or "none", the paper's.
    """
    with user_errors():
        from expandr_cli.runs import print_runs
        from tasks.stage import open_store

        print_runs(out, open_store(absolute(store)), limit)


@app.command()
def show(
    what: Annotated[
        str,
        typer.Argument(help="A run or key, or the beginning of one, or 'latest'."),
    ] = "latest",
    store: StoreOption = "store",
) -> None:
    """Show a run or an artifact, with its lineage back to the data."""
    from expandr_cli.show import show_any

    with user_errors():
        show_any(out, store, what)


@app.command()
def verify(
    key: Annotated[
        str, typer.Argument(help="Beginning of the keys to verify; empty for all.")
    ] = "",
    store: StoreOption = "store",
) -> None:
    """Compare every file in the store with its manifest; exit with 1 if any is damaged."""
    from expandr_cli.show import verify_all

    with user_errors():
        damaged = verify_all(out, store, key)
    raise typer.Exit(1 if damaged else 0)


@app.command()
def search(
    question: Annotated[str, typer.Argument(help="What to search for.")],
    run_name: Annotated[
        str,
        typer.Option(
            "--run",
            help="Alias (champion, MODEL/ALIAS, MODEL/VERSION), run, or 'latest'; by default the "
            "champion, and the latest run as long as there is none.",
        ),
    ] = "",
    passages: Annotated[int, typer.Option("-k", min=1, help="How many passages to show.")] = 5,
    expand: Annotated[
        bool,
        typer.Option(help="Let the LLM expand the question first, or search without any LLM."),
    ] = True,
    gate: Annotated[
        bool, typer.Option(help="Ask the run's gate first whether to expand, if it has one.")
    ] = True,
    distilled: Annotated[
        bool,
        typer.Option(help="With --no-expand: use the distilled query encoder, if the run has one."),
    ] = True,
    store: StoreOption = "store",
) -> None:
    """Search the corpus with the LLM and retriever of the champion, or of a run."""
    from expandr_cli.search import search_corpus

    with_llm, without = "auto" if gate else "expanded", "distilled" if distilled else "alone"
    with user_errors():
        search_corpus(out, store, run_name, question, passages, with_llm if expand else without)


Stage = Literal[
    "prepare", "import_pairs", "import_expansions", "expansions", "greedy", "candidates", "answers",
    "preferences", "dpo", "retriever", "distil", "evaluate",
]  # fmt: skip


@app.command()
def stage(
    name: Annotated[Stage, typer.Argument(help="The stage.")],
    config: Annotated[Path, typer.Argument(help="YAML file, as for `expandr run`.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="ROLE=KEY or ROLE=KEY/FILE of an artifact; repeatable."),
    ] = None,
    store: StoreOption = "store",
    seed: SeedOption = None,
    changes: SetOption = None,
) -> None:
    """Run one stage of the loop alone, on artifacts of earlier runs.

    Example: `expandr stage dpo configs/demo.yaml --input llm=tiny_llm-3fa9 --input pairs=pairs-77c1`

    A stage without its inputs says which it needs; `expandr show RUN` lists the keys of a run.
    """
    options = load_options(config, seed, changes or [])
    with user_errors(AGAIN):
        from expandr_cli.preflight import check_stage
        from expandr_cli.temporary_server import prefect_server, run_flow
        from flows.single_stage import Inputs, single_stage

        keys = {role: key for role, _, key in (text.partition("=") for text in inputs or [])}
        if unknown := keys.keys() - Inputs.model_fields:
            fail(f"--input {min(unknown)}: give one of {', '.join(Inputs.model_fields)}")
        named, where = Inputs(**keys), absolute(store)
        check_stage(name, options, named, where)
        with prefect_server(notify):
            steps = run_flow(single_stage, stage=name, options=options, inputs=named, store=where)
            for step in steps:
                out.print(f"{step.title}: {step.artifact.key}", highlight=False)


def _run_loop(options: JointLoopOptions, store: str, said: list[str]) -> None:
    """Run the loop; what was said of it is shown with it, here and in Prefect."""
    with user_errors(RESUME):
        from expandr_cli.preflight import check_run
        from expandr_cli.results import print_summary
        from expandr_cli.temporary_server import prefect_server, run_flow
        from flows.joint_loop import joint_loop
        from flows.run_record import said_of_it
        from tasks.stage import open_store

        check_run(options, absolute(store))
        with prefect_server(notify), said_of_it(said):
            summary = run_flow(joint_loop, options=options, store=absolute(store))
        print_summary(out, open_store(summary.store), summary)


if __name__ == "__main__":
    app()
