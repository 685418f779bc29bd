"""What a run has brought, in the terminal: tables of a comparison, the verdict, and what to do next."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from expandr_cli.terminal import absolute
from expandr_core.evaluation.comparison import read_comparison, tests_in, titles_of
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.evaluation.render import (
    EFFECTS,
    baseline_title,
    counted,
    format_p,
    format_score,
    tests_of,
)
from expandr_core.reports.files import has_report, place_of
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import RecordedRun
from expandr_core.store.store import Store
from flows.run_record import RunRecord
from tasks.stage import open_store

SHOWN = ("ndcg_at_10", "recall_at_100")
STYLES = {"better": "green", "worse": "red"}


def print_summary(out: Console, store: Store, run: RecordedRun | RunRecord) -> None:
    """Print what a run of the loop brought, and what to do next; the store may have moved since."""
    folder = store.local(run.report)
    comparison = read_comparison(folder)
    print_comparison(out, comparison)
    if run.best_round:
        out.print(f"\nThe best models, of round {run.best_round}", style="bold")
        for role, what in {"llm": "language model", "retriever": "retriever"}.items():
            key = run.models[role].key
            out.print(f"  {what:<16}{key}", highlight=False, soft_wrap=True)
            out.print(f"  {'':<16}{store.url}/artifacts/{key}", highlight=False, soft_wrap=True)
    decided = comparison["verdict"]["expand"] or "gate" in run.models
    alone = "" if decided else " --no-expand"
    option = store_option(store)
    out.print("\nWhat to do next", style="bold")
    for what, command in {
        "Search with the best models": f'expandr search "your question"{alone}{option}',
        "Look at the report": _page(store, run.name, folder),
        "See how each number came to be": f"expandr explain {run.name}{option}",
        "Run the loop on your data": "expandr run CONFIG --set data.collection=FOLDER",
        "Measure these models on your data": f"expandr evaluate CONFIG --run {run.name} "
        f"--datasets FOLDER/{option}",
        "Look at the run in Prefect": "prefect server start, then http://127.0.0.1:4200",
    }.items():
        out.print(f"  {what}:\n    {command}", highlight=False, soft_wrap=True)
    out.print(
        "CONFIG is a YAML file such as configs/scifact.yaml, FOLDER a collection in BEIR layout "
        "(corpus.jsonl, queries.jsonl, qrels/*.tsv).",
        highlight=False,
        style="dim",
    )


def _page(store: Store, name: str, folder: Path) -> str:
    """Return where the report of a run lies, or the tables of its comparison."""
    return place_of(store, name) if has_report(store, name) else f"{folder}/report.md"


def print_suite(out: Console, url: str, report: Artifact, name: str) -> None:
    """Print what a run of the suite brought, and where the rest is."""
    store = open_store(url)
    folder = store.local(report)
    print_comparison(out, read_comparison(folder))
    option = store_option(store)
    for what in (
        f"\nThe report: {_page(store, name, folder)}",
        f"The rest, and CSV and JSON: {folder}",
        f"How each number came to be: expandr show {report.key}{option}",
    ):
        out.print(what, highlight=False, soft_wrap=True)


def print_comparison(out: Console, comparison: dict[str, Any]) -> None:
    """Print the tables, the verdict, how it was tested, and the warnings."""
    for table in tables(comparison):
        out.print()
        out.print(table)
    out.print()
    for sentence in comparison["verdict"]["sentences"]:
        out.print(sentence, highlight=False)
    if comparison["contrasts"]:
        out.print(_how_tested(comparison), highlight=False, style="dim")
    for warning in comparison["warnings"]:
        out.print(f"Warning: {warning}.", style="yellow", highlight=False)


def _how_tested(comparison: dict[str, Any]) -> str:
    """Say what p and the differences are of."""
    contrasts = comparison["contrasts"]
    said = (
        f"p: {tests_of(comparison)} of {MEASURES[comparison['metric']].title}, Holm's "
        f"correction over {tests_in(comparison)} tests; * p < {comparison['significance_level']:g}."
    )
    if any(each["clusters"] != each["queries"] for each in contrasts):
        said += " Each cluster of queries counts once, in differences, too, but not in scores."
    return said


def tables(comparison: dict[str, Any]) -> Iterator[Table]:
    """Yield the means over datasets, if there are several, and a table per dataset."""
    if len(comparison["datasets"]) > 1:
        yield _means(comparison)
    for dataset in comparison["datasets"]:
        rows = [row for row in comparison["results"] if row["dataset"] == dataset["name"]]
        yield _results(comparison, rows)


def _means(comparison: dict[str, Any]) -> Table:
    """One row per system and one column per mean."""
    metric, means = comparison["metric"], comparison["means"]
    scopes = dict.fromkeys(mean["title"] for mean in means)
    table = plain_table(f"{MEASURES[metric].title}, means over datasets", "system", *scopes)
    for name, title in titles_of(comparison).items():
        cells = {
            mean["title"]: format_score(mean, metric) for mean in means if mean["system"] == name
        }
        table.add_row(title, *(cells.get(scope, "") for scope in scopes))
    return table


def _results(comparison: dict[str, Any], rows: list[dict[str, Any]]) -> Table:
    """The results on a dataset of the systems to look at first."""
    titles, shown = titles_of(comparison), _shown(comparison, rows)
    table = plain_table(
        f"{rows[0]['dataset']}: {counted(rows[0]['queries'], 'query', 'queries')}",
        "system",
        *(MEASURES[name].title for name in SHOWN),
        f"vs. {baseline_title(comparison)}",
        "p",
    )
    for row in rows:
        cells = [titles[row["system"]], *(format_score(row, name) for name in SHOWN)]
        if row["p"] is not None:
            word = EFFECTS[row["effect"]] if row["significant"] else ""
            cells += [f"{row['difference']:+.3f} {word}".strip(), format_p(row["corrected_p"])]
        if row["system"] in shown:
            table.add_row(*cells, style=STYLES.get(row["effect"]))
    return table


def _shown(comparison: dict[str, Any], rows: list[dict[str, Any]]) -> set[str]:
    """Choose systems, among them all that the verdict names: BM25, RM3, those with a baseline, the
    baselines, what is kept, and the best on the dataset; or all if none has a baseline.
    """
    systems, kept = comparison["systems"], comparison["kept"]
    baselines = {system["name"]: system["baseline"] for system in systems if system["baseline"]}
    if not baselines:
        return {system["name"] for system in systems}
    chosen = {kept["expanded"], kept["alone"]} if kept else set()
    best = max(rows, key=lambda row: row[comparison["metric"]])["system"]
    return {"bm25", "bm25-rm3", *baselines, *baselines.values(), best} | chosen


def plain_table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, box=None, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def store_option(store: Store) -> str:
    """Return the option that names this store, or "" for the default store."""
    usual = absolute(os.environ.get("EXPANDR_STORE", "store"))
    return "" if store.url == usual.rstrip("/") else f" --store {shlex.quote(store.url)}"
