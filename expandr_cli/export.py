"""The commands `expandr export` and `expandr export-run`: results for other tools."""

from pathlib import Path
from typing import Annotated

import typer

from expandr_cli.terminal import StoreOption, absolute, out, user_errors
from expandr_core.errors import DataError

app = typer.Typer()


@app.command()
def export(
    what: Annotated[
        str, typer.Argument(help="A run or key, or the beginning of one, or 'latest'.")
    ],
    folder: Annotated[Path, typer.Argument(help="New folder to write.")],
    store: StoreOption = "store",
) -> None:
    """Write a run or an artifact in the layouts of the paper's releases, which `expandr run` reads too.

    Preference pairs become JSON for `data.pairs`, expansions of training queries JSON lines for
    `data.triples`; adapters, language models and retrievers stay as they are. Of a run, these are its
    best models and what they were trained on last.
    """
    with user_errors():
        from expandr_core.exports.export import export_artifact, export_models, new_folder
        from flows.run_record import find_other_run, find_run
        from tasks.pipeline import Pipeline
        from tasks.stage import open_store

        opened = open_store(absolute(store))
        run = find_run(opened, what)
        other = None if run else find_other_run(opened, what)
        if other:
            raise DataError(
                f"{other['name']} is a run of {other['kind']}, which keeps no best models; name a model "
                "or other artifact by its key"
            )
        with new_folder(folder) as partial:
            if run:
                written = export_models(opened, run.models["llm"], run.models["retriever"], partial)
            else:
                found = Pipeline(absolute(store)).find(what)
                written = export_artifact(opened, found, partial)
    for name, rows in written.items():
        out.print(f"{rows:,} rows in {folder / name}", highlight=False)
    if run:
        out.print(f"the best models of {run.name} in {folder}", highlight=False)
    elif not written:
        out.print(f"a model in {folder}", highlight=False)


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
