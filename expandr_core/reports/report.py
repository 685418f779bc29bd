"""The report of a run as data: report.json, which all its pages are written from."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from expandr_core.errors import DataError, first_line
from expandr_core.evaluation.comparison import titles_of
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.evaluation.render import counted, tests_of
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.intervals import CONFIDENCE_PERCENT, RESAMPLES
from expandr_core.reports.costs import costs_of
from expandr_core.reports.facts import (
    code_facts,
    data_facts,
    option_facts,
    run_facts,
    split_facts,
    written_facts,
)
from expandr_core.reports.graph import graph_of
from expandr_core.reports.learning import (
    LOW_AGREEMENT,
    audits_of,
    curves_of,
    distributions_of,
    reward_scale,
)
from expandr_core.reports.limits import MANY_LEAKED, leaks_of, limits_of
from expandr_core.reports.models import beginnings_of, dev_scores_of, models_of
from expandr_core.reports.queries import changes_of
from expandr_core.reports.similarity import similarity_of
from expandr_core.reports.suggestions import suggestions_of
from expandr_core.reports.systems import headline_of, path_of, rounds_of, systems_of
from expandr_core.reports.terms import terms_of
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
    run, done = ComparedRun(store, record), itertools.count()

    def part(name: str, make: Callable[[], Section]) -> Section:
        if progress:
            progress(next(done), _PARTS, name)
        return make()

    comparison = run.comparison
    systems, tests = part("intervals", lambda: systems_of(run))
    headline = headline_of(comparison, tests)
    titles, single = titles_of(comparison), len(comparison["datasets"]) == 1
    points = 100 * headline["difference"] if headline and single else None
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "run": run_facts(run),
        **_outcome(run),
        "datasets": part("data", lambda: _try(lambda: data_facts(run), [])),
        "split": _try(lambda: split_facts(run), []),
        "written": _try(lambda: written_facts(run), {"texts": 0, "truncated": 0}),
        "headline": headline,
        "systems": systems,
        "models": _try(lambda: models_of(run), []),
        "dev": _try(lambda: dev_scores_of(run), []) if comparison["kept"] else [],
        "means": [] if single else _named(comparison["means"], "system_title", titles),
        "tests": tests,
        "terms": terms_of(titles.values()),
        "path": path_of(systems, tests, comparison) if single else [],
        "rounds": rounds_of(systems, comparison["metric"]) if single else [],
        "similarity": part("similarity", lambda: _or_why(lambda: similarity_of(run))),
        "distributions": part("distributions", lambda: _or_why(lambda: distributions_of(run))),
        "curves": part("curves", lambda: _try(lambda: curves_of(run), [])),
        "queries": part("queries", lambda: _or_why(lambda: _changes(run, headline))),
        "pair_audits": _try(lambda: audits_of(run), []),
        "reward_scale": reward_scale(record.options.get("preferences", {})),
        "low_agreement": LOW_AGREEMENT,
        "leakage": _named(comparison["leakage"], "title", titles),
        "cost": part("cost", lambda: costs_of(run, points)),
        "lineage": part("lineage", lambda: _or_why(lambda: graph_of(run))),
        "code": {"commits": [], "hardware": []}
        | _or_why(lambda: code_facts(run.lineage.upstream([record.report.key]))),
        "options": option_facts(run),
    }
    return report | _said(report)


def _said(report: dict[str, Any]) -> dict[str, Any]:
    """Say in words what follows from the rest of a report."""
    return {
        "counts": _counts(report),
        "scope": _scope(report),
        "beginnings": beginnings_of(report["models"]),
        "leaks": leaks_of(report, MANY_LEAKED),
        "cannot_say": limits_of(report),
        "suggestions": suggestions_of(report),
    }


def _named(rows: list[dict[str, Any]], name: str, titles: dict[str, str]) -> list[dict[str, Any]]:
    """Add the titles of the systems to rows."""
    return [row | {name: titles[row["system"]]} for row in rows]


def _counts(report: dict[str, Any]) -> dict[str, int]:
    """Count what the pages count."""
    return {
        "tests": sum(test["counted"] for test in report["tests"]),
        "equal": sum(test["effect"] == "equal" for test in report["tests"]),
        "repeated": sum(
            not test["counted"] and test["effect"] != "equal" for test in report["tests"]
        ),
        "set": len(report["run"]["set"]),
        "trainings": len(report["curves"]),
        "datasets": len({row["dataset"] for row in report["systems"]}),
        "boxes": len(report["lineage"].get("nodes", ())),
        "sources": len(report["code"].get("sources", ())),
        "options": len(report["options"]["all"]),
        "gone": len(report["cost"]["gone"]),
    }


def _scope(report: dict[str, Any]) -> str:
    """Say how much was measured on: queries and passages, or datasets.

    >>> _scope({"datasets": [{"queries": 300, "passages": 1200}]})
    '300 queries, 1,200 passages'
    """
    rows = report["datasets"]
    asked = counted(sum(row["queries"] for row in rows), "query", "queries")
    if len(rows) != 1:
        return f"{len(rows)} sets of queries, {asked}" if rows else ""
    passages = rows[0]["passages"]
    return asked + ("" if passages is None else f", {passages:,.0f} passages")


def _outcome(run: ComparedRun) -> dict[str, Any]:
    """Return what the comparison says in words, and how it was measured and tested."""
    comparison = run.comparison
    return {
        "verdict": comparison["verdict"]["sentences"],
        "expand": comparison["verdict"]["expand"],
        **{name: comparison[name] for name in ("kept", "metric", "significance_level", "warnings")},
        "metric_title": MEASURES[comparison["metric"]].title,
        "test_title": tests_of(comparison),
        "confidence_percent": CONFIDENCE_PERCENT,
        "resamples": RESAMPLES,
        "seeds": _seeds(run),
        "baseline": _baseline(comparison),
    }


def _baseline(comparison: dict[str, Any]) -> str:
    """Name the baseline that most systems have."""
    found = Counter(each["baseline"] for each in comparison["systems"] if each["baseline"])
    return titles_of(comparison)[found.most_common(1)[0][0]] if found else ""


def _seeds(run: ComparedRun) -> int:
    """Count the seeds that everything was made with; a suite makes nothing but texts."""
    if run.run.kind == "evaluate-suite":
        return max(each["seeds"] for each in run.comparison["systems"])
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
