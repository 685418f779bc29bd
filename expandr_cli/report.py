"""The command `expandr report`: what a run brought, as pages to look at and to forward."""

import json
from pathlib import Path
from typing import Annotated

import typer

from expandr_cli.explain import RunArgument, recorded
from expandr_cli.terminal import StoreOption, absolute, notify, out, user_errors

app = typer.Typer()


@app.command()
def report(
    run: RunArgument = "latest",
    folder: Annotated[
        Path | None,
        typer.Argument(help="Where to write; reports/RUN in the store by default."),
    ] = None,
    index: Annotated[
        bool, typer.Option("--index", help="Only write the index of all runs in the store.")
    ] = False,
    store: StoreOption = "store",
) -> None:
    """Write the report of a run: report.html to look at, report.md, .tex, .json and .csv.

    A run writes it by itself at its end (`evaluate.report`).
    """
    with user_errors():
        from expandr_core.reports.files import keep_index, keep_report, place_of, write_report
        from tasks.stage import open_store

        opened = open_store(absolute(store))
        if index:
            where = keep_index(opened)
            out.print(where, highlight=False, soft_wrap=True)
            return
        found = recorded(opened, run)
        if folder is None:
            from expandr_cli.preflight import check_reports

            check_reports(opened)
            pages = keep_report(opened, found, _say)
            where = place_of(opened, found.name)
        else:
            pages = write_report(opened, found, folder, _say)
            where = str(folder / "report.html")
    for sentence in json.loads(pages["report.json"])["verdict"]:
        out.print(sentence, highlight=False)
    out.print(f"\n{where}", highlight=False, soft_wrap=True)
    others = ", ".join(name for name in pages if name != "report.html")
    out.print(f"and beside it {others}", highlight=False, soft_wrap=True)


def _say(done: int, total: int, what: str) -> None:
    notify(f"{done + 1} of {total}: {what}")
