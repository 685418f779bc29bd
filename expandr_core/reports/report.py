"""The report of a run as data: report.json, which all its pages are written from."""

from collections.abc import Callable
from typing import Any, TypeVar

from expandr_core.errors import DataError, first_line
from expandr_core.evaluation.comparison import titles_of
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.evaluation.significance import TEST_NAMES
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.reports.costs import costs_of
from expandr_core.reports.facts import code_facts, data_facts, option_facts, run_facts
from expandr_core.reports.graph import graph_of
from expandr_core.reports.intervals import CONFIDENCE_PERCENT, RESAMPLES
from expandr_core.reports.learning import audits_of, curves_of, distributions_of
from expandr_core.reports.limits import limits_of, suggestions_of
from expandr_core.reports.queries import changes_of
from expandr_core.reports.similarity import similarity_of
from expandr_core.reports.systems import headline_of, path_of, rounds_of, systems_of
from expandr_core.store.manifests import DamagedArtifact
from expandr_core.store.run_records import RecordedRun
from expandr_core.store.store import Store

SCHEMA = 1  # of report.json
Section = TypeVar("Section")
Progress = Callable[[int, int, str], None]
_PARTS = 8


def report_of(
    store: Store, record: RecordedRun, progress: Progress | None = None
) -> dict[str, Any]:
    """Collect everything that the report of a run shows; nothing is computed by a model.

    Args:
        store: that keeps the run.
        record: of any flow with a comparison.
        progress: is told parts done, all parts, and which part comes.

    Returns:
        Plain values; a section that cannot be made is {"unavailable": why}.

    Raises:
        DataError: if the comparison is of another version.
        FileNotFoundError: if the comparison or an evaluation is gone.
    """
    run, done = ComparedRun(store, record), 0

    def part(name: str, make: Callable[[], Section]) -> Section:
        nonlocal done
        if progress:
            progress(done, _PARTS, name)
        done += 1
        return make()

    comparison = run.comparison
    systems, tests = part("intervals", lambda: systems_of(run))
    headline = headline_of(comparison, tests)
    points = None if headline is None else 100 * headline["difference"]
    titles, single = titles_of(comparison), len(comparison["datasets"]) == 1
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "run": run_facts(run),
        **_outcome(run),
        "datasets": part("data", lambda: _try(lambda: data_facts(run), [])),
        "headline": headline,
        "systems": systems,
        "means": [] if single else _named(comparison["means"], "system_title", titles),
        "tests": tests,
        "path": path_of(systems, comparison) if single else [],
        "rounds": rounds_of(systems, comparison["metric"]) if single else [],
        "similarity": part("similarity", lambda: _or_why(lambda: similarity_of(run))),
        "distributions": part("distributions", lambda: _or_why(lambda: distributions_of(run))),
        "curves": part("curves", lambda: _try(lambda: curves_of(run), [])),
        "queries": part("queries", lambda: _or_why(lambda: _changes(run, headline))),
        "pair_audits": _try(lambda: audits_of(run), []),
        "leakage": _named(comparison["leakage"], "title", titles),
        "cost": part("cost", lambda: costs_of(run, points)),
        "lineage": part("lineage", lambda: _or_why(lambda: graph_of(run))),
        "code": _or_why(lambda: code_facts(run.lineage.upstream([record.report.key]))),
        "options": option_facts(run),
    }
    report["counts"] = _counts(report)
    report["cannot_say"] = limits_of(report)
    report["suggestions"] = suggestions_of(report)
    return report


def _named(rows: list[dict[str, Any]], name: str, titles: dict[str, str]) -> list[dict[str, Any]]:
    """Add the titles of the systems to rows."""
    return [row | {name: titles[row["system"]]} for row in rows]


def _counts(report: dict[str, Any]) -> dict[str, int]:
    """Count what the pages count."""
    return {
        "tests": len(report["tests"]),
        "trainings": len(report["curves"]),
        "datasets": len({row["dataset"] for row in report["systems"]}),
        "boxes": len(report["lineage"].get("nodes", ())),
        "sources": len(report["code"].get("sources", ())),
        "options": len(report["options"]["all"]),
        "gone": len(report["cost"]["gone"]),
    }


def _outcome(run: ComparedRun) -> dict[str, Any]:
    """Return what the comparison says in words, and how it was measured and tested."""
    comparison = run.comparison
    return {
        "verdict": comparison["verdict"]["sentences"],
        "expand": comparison["verdict"]["expand"],
        **{name: comparison[name] for name in ("kept", "metric", "significance_level", "warnings")},
        "metric_title": MEASURES[comparison["metric"]].title,
        "test_title": TEST_NAMES[comparison["test"]],
        "confidence_percent": CONFIDENCE_PERCENT,
        "resamples": RESAMPLES,
        "seeds": _seeds(run),
    }


def _seeds(run: ComparedRun) -> int:
    """Count the seeds that everything was made with."""
    several = run.comparison.get("subsets_are") in ("seeds", "worlds")
    return len(run.comparison["datasets"][0]["subsets"]) if several else 1


def _changes(run: ComparedRun, headline: dict[str, Any] | None) -> dict[str, Any]:
    if headline is None:
        raise DataError("no system was compared with a baseline")
    return changes_of(run, headline)


def _or_why(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Make a section, or say why it cannot be made: an artifact may be gone by now."""
    try:
        return make()
    except (DamagedArtifact, DataError, FileNotFoundError) as error:
        return {"unavailable": first_line(error)}


def _try(make: Callable[[], Section], otherwise: Section) -> Section:
    """Make a section, or leave it empty if an artifact is gone."""
    try:
        return make()
    except (DamagedArtifact, FileNotFoundError):
        return otherwise
