"""The commands `expandr export` and `expandr export-run`: results for other tools."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expandr_cli.terminal import StoreOption, absolute, notify, out, user_errors
from expandr_core.errors import DataError
from expandr_core.store.registered_model import CHAMPION
from expandr_core.store.store import Store

if TYPE_CHECKING:
    from flows.run_record import RunRecord

app = typer.Typer()


@app.command()
def export(
    what: Annotated[
        str,
        typer.Argument(
            help="Alias (champion, MODEL/ALIAS, MODEL/VERSION), run, 'latest', or key of an artifact. "
            "As long as there is no champion, the latest run stands for it."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="New folder to write.")],
    adapter: Annotated[
        bool,
        typer.Option("--adapter", help="Only the LLM's adapter, for PEFT, instead of all of it."),
    ] = False,
    store: StoreOption = "store",
) -> None:
    """Write models and data for users of other software: `expandr export champion FOLDER`.

    The models are folders for sentence-transformers, transformers, PEFT and vLLM that behave as they
    were measured; the data that they were trained on last has the layouts of the paper's releases, which
    `datasets` loads and `data.pairs` and `data.triples` read. Each has a card with the results. Nothing
    is uploaded: the commands that would do so are printed.

    An artifact alone is written as it lies, or in these layouts.
    """
    with user_errors():
        from expandr_core.store.registry import find_version
        from flows.champions import chosen_run
        from flows.run_record import find_other_run, find_run
        from tasks.stage import open_store

        chosen, opened = what, open_store(absolute(store))
        if not find_version(opened, chosen):
            if other := find_other_run(opened, chosen):
                raise DataError(
                    f"{other['name']} is a run of {other['kind']}, which keeps no best models; name a "
                    "model or other artifact by its key"
                )
            if chosen == CHAMPION:
                chosen = ""
            elif not find_run(opened, chosen):
                _export_artifact(opened, chosen, folder)
                return
        _export_models(opened, chosen_run(opened, chosen, notify), folder, adapter)


def _export_artifact(store: Store, key: str, target: Path) -> None:
    from expandr_core.exports.export import export_artifact, new_folder
    from tasks.pipeline import Pipeline

    found = Pipeline(store.url).find(key)
    with new_folder(target) as partial:
        written = export_artifact(store, found, partial)
    _print_rows(written, target)
    if not written:
        out.print(f"a model in {target}", highlight=False)


def _export_models(store: Store, run: "RunRecord", target: Path, adapter: bool) -> None:
    from expandr_core.exports.champion import KeptModels, export_champion, uploads
    from expandr_core.exports.export import new_folder
    from flows.champions import merged, named_after

    with new_folder(target) as partial:
        models = run.models if adapter else run.models | {"llm": merged(store, run)}
        kept = KeptModels(named_after(run), run.name, run.options, models, run.report)
        written = export_champion(store, kept, partial, adapter)
    _print_rows(written, target)
    out.print(f"the models of {run.name} in {target}; to upload them:", highlight=False)
    for command in uploads(kept.name, target):
        out.print(f"  {command}", highlight=False, soft_wrap=True)


def _print_rows(written: dict[str, int], target: Path) -> None:
    for name, rows in written.items():
        out.print(f"{rows:,} rows in {target / name}", highlight=False)


@app.command()
def export_run(
    key: Annotated[str, typer.Argument(help="Key of an evaluation, or its beginning.")],
    target: Annotated[Path, typer.Argument(help="File to write.")] = Path("run.trec"),
    tag: Annotated[str, typer.Option(help="The system's name in the file.")] = "expandr",
    store: StoreOption = "store",
) -> None:
    """Write the ranking of an evaluation in TREC's format, for trec_eval, ir_measures or ranx.

    Equal scores are written as the next lower number, so that every tool reads the same order.
    `expandr show REPORT` lists the keys of its evaluations.
    """
    from expandr_core.evaluation.trec import write_trec
    from tasks.stage import open_store

    with user_errors():
        opened = open_store(store)
        found = [each for each in opened.keys(key) if each.startswith("evaluate")]
        artifact = opened.lookup(found[0]) if len(found) == 1 else None
        if artifact is None:
            raise DataError(
                f"{key!r} is the beginning of the keys of {len(found)} intact evaluations in {store}"
            )
        hits = write_trec(opened.local(artifact) / "run.parquet", target, tag)
    out.print(f"{hits:,} hits in {target}", highlight=False)
