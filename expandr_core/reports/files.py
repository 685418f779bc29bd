"""Where reports are kept: in the store, as reports/RUN/, and an index of all runs beside them."""

from pathlib import Path
from typing import Any

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import read_comparison, titles_of
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.reports.facts import run_facts
from expandr_core.reports.pages import filled, pages_of
from expandr_core.reports.report import Progress, report_of
from expandr_core.reports.systems import headline_of
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import (
    REPORTS,
    RecordedRun,
    read_record,
    recorded_run,
    write_text,
)
from expandr_core.store.store import Store

PAGE = "report.html"


def place_of(store: Store, name: str) -> str:
    """Return where the page of a run is kept, or would be."""
    root = store.root if store.is_local else store.url
    return f"{root}/{REPORTS}/{name}/{PAGE}"


def has_report(store: Store, name: str) -> bool:
    """Tell whether the report of a run is in the store."""
    return store.filesystem.exists(f"{store.root}/{REPORTS}/{name}/{PAGE}")


def keep_report(
    store: Store, run: RecordedRun | str, progress: Progress | None = None
) -> dict[str, str]:
    """Write the report of a run into the store, and the index anew; return its pages by file name.

    Args:
        store: that keeps the run.
        run: the run, or its whole name.
        progress: is told parts done, all parts, and which part comes.

    Raises:
        DataError: if the record or the comparison cannot be read.
        FileNotFoundError: if an artifact of the comparison is gone.
    """
    if isinstance(run, str):
        run = recorded_run(read_record(store.filesystem, f"{store.root}/runs", run))
    pages = pages_of(report_of(store, run, progress))
    for name, text in pages.items():
        write_text(store.filesystem, f"{store.root}/{REPORTS}/{run.name}", name, text)
    keep_index(store)
    return pages


def write_report(
    store: Store, run: RecordedRun, folder: Path, progress: Progress | None = None
) -> dict[str, str]:
    """Write the report of a run into a folder of this machine; return its pages by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = pages_of(report_of(store, run, progress))
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return pages


def keep_index(store: Store) -> str:
    """Write the index of a store's runs, the newest first; return where it is."""
    runs = [_listed(store, record) for record in reversed(store.records())]
    page = filled("index.html.j2", {"runs": runs, "store": store.url})
    write_text(store.filesystem, f"{store.root}/{REPORTS}", "index.html", page)
    return place_of(store, "").replace(f"/{PAGE}", "index.html")


def _listed(store: Store, record: dict[str, Any]) -> dict[str, Any]:
    """Say in few words what a run was and brought; of one that cannot be read, why."""
    try:
        run = recorded_run(record)
        comparison = read_comparison(
            store.local(Artifact(key=run.report.key, digest="", path="comparison.json")).parent
        )
    except (DataError, FileNotFoundError) as error:
        return {"name": record.get("name", "?"), "error": str(error)}
    headline = headline_of(comparison, comparison["contrasts"])
    found = run_facts(ComparedRun(store, run)) | {
        "verdict": comparison["verdict"]["sentences"],
        "metric_title": MEASURES[comparison["metric"]].title,
        "page": f"{run.name}/{PAGE}" if has_report(store, run.name) else "",
        "headline": None,
    }
    if headline:
        scores = {
            row["system"]: row[comparison["metric"]]
            for row in comparison["results"]
            if row["dataset"] == headline["dataset"]
        }
        titles = titles_of(comparison)
        found["headline"] = headline | {
            "before_value": scores[headline["before"]],
            "after_value": scores[headline["after"]],
            "after_title": titles[headline["after"]],
        }
    return found
