"""What the systems of a run reach, with intervals: as a table, as tests, and round by round."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from expandr_core.evaluation.comparison import titles_of
from expandr_core.evaluation.significance import name_of_tests
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.reports.models import expanding, ranks_nothing_else

Row = dict[str, Any]
FAMILIES = ("reference", "base retriever", "control", "joint")
_BEGINNINGS = {
    "bm25": "reference",
    "control": "control",
    **dict.fromkeys(("round", "joint", "learned", "gated", "rrf", "distilled"), "joint"),
}
# systems of round 0, by the line that they begin
_STARTS = {
    "round-N": "untrained",
    "aligned-N": "untrained",
    "round-N-query": "query",
    "round-N-greedy": "untrained-greedy",
    "aligned-N-greedy": "untrained-greedy",
    "round-N-alone": "untrained-alone",
    "control-aligned-N": "control-untrained",
}


def family_of(system: str) -> str:
    """Return the family of a system, which gives it its colour.

    >>> [family_of(name) for name in ("bm25-untrained", "aligned-2", "control-aligned-1", "round-1")]
    ['reference', 'base retriever', 'control', 'joint']
    """
    return next((f for name, f in _BEGINNINGS.items() if system.startswith(name)), "base retriever")


def systems_of(run: ComparedRun) -> tuple[list[Row], list[Row]]:
    """Return the rows of the table and the tests, with intervals of nDCG@10 and of differences.

    Rows are those of comparison.json with title, family, clusters, low and high, with `against`: the
    title of the baseline, or "", with `expands`: whether the system uses expansions, and with `equals`:
    the title of an earlier one that ranks alike, or "". Tests of systems with equal scores have no p.
    """
    comparison, titles = run.comparison, titles_of(run.comparison)
    baselines = {each["name"]: each["baseline"] for each in comparison["systems"]}
    rows, tests = [], []
    for dataset in (each["name"] for each in comparison["datasets"]):
        measured = run.intervals(dataset)
        expands = expanding(run, dataset)
        alike = _alike(run, dataset, measured.scores, list(titles))
        for row in comparison["results"]:
            if row["dataset"] == dataset:
                name, first = row["system"], alike[row["system"]]
                known = {"title": titles[name], "family": family_of(name), "expands": expands[name]}
                known |= {"clusters": measured.clusters, "against": titles.get(baselines[name], "")}
                known["equals"] = "" if first == name else titles[first]
                low, high = measured.limits["", name]
                rows.append(row | known | {"low": low, "high": high} | _untested(row))
        for test in comparison["contrasts"]:
            if test["dataset"] == dataset:
                before, after = test["before"], test["after"]
                named: Row = {"before_title": titles[before], "after_title": titles[after]}
                named["ties"] = test["queries"] - test["wins"] - test["losses"]
                named["counted"] = test.get("counted", True)
                named["test_title"] = name_of_tests(comparison["test"], [test["clusters"]])
                low, high = measured.limits[before, after]
                tests.append(test | named | {"low": low, "high": high} | _untested(test))
    return rows, tests


def _untested(row: Row) -> Row:
    """Return what is said instead of a p-value where no query is won or lost."""
    if row["wins"] == row["losses"] == 0:
        return {"effect": "equal", "p": None, "corrected_p": None}
    return {}


def _alike(run: ComparedRun, dataset: str, scores: Any, names: list[str]) -> dict[str, str]:
    """Return of each system the first one that finds the same passages in the same order."""
    found: dict[str, str] = {}
    for place, name in enumerate(names):
        equal = (
            first
            for earlier, first in enumerate(names[:place])
            if found[first] == first
            and np.array_equal(scores[:, place], scores[:, earlier])
            and ranks_nothing_else(run, dataset, name, first)
        )
        found[name] = next(equal, name)
    return found


def headline_of(comparison: Mapping[str, Any], tests: list[Row]) -> Row | None:
    """Return the test that the report is about: what is kept, or the best system, against its baseline.

    A system that ranks every query as its baseline does, such as a gate that never expands, comes last.
    None if nothing was compared with a baseline.
    """
    baselines = {each["name"]: each["baseline"] for each in comparison["systems"]}
    dataset, kept = comparison["datasets"][0]["name"], comparison["kept"]
    scores = {
        row["system"]: row[comparison["metric"]]
        for row in comparison["results"]
        if row["dataset"] == dataset
    }
    asked = [
        test
        for test in tests
        if test["dataset"] == dataset and baselines[test["after"]] == test["before"]
    ]
    if kept and any(test["after"] == kept["expanded"] for test in asked):
        return next(test for test in asked if test["after"] == kept["expanded"])

    def importance(test: Row) -> tuple[bool, float]:
        return test["wins"] + test["losses"] > 0, scores[test["after"]]

    return max(asked, key=importance, default=None)


def rounds_of(rows: list[Row], metric: str) -> list[Row]:
    """Return lines of nDCG@10 over the rounds, from 0: what there was before; none outside the loop.

    Each has a `line`, a `title`, a `family`, and `points` with round, system, value, low and high.
    """
    known = {row["system"]: row for row in rows}
    lines: dict[str, Row] = {}
    for name, row in known.items():
        numbers = re.findall(r"(?:round|aligned)-(\d+)", name)
        if len(numbers) != 1:
            continue
        line = re.sub(r"-\d+", "-N", name)
        title = row["title"].replace(f"retriever of round {numbers[0]}", "retrained retriever")
        title = re.sub(r",? ?round \d+", "", title).strip()
        found = lines.setdefault(
            line, {"line": line, "title": title, "family": row["family"], "points": []}
        )
        start = _STARTS.get(line)
        if not found["points"] and start in known:
            found["points"].append(_point(0, known[start], metric))
        found["points"].append(_point(int(numbers[0]), row, metric))
    return list(lines.values())


def _point(number: int, row: Row, metric: str) -> Row:
    return {"round": number, "system": row["system"], "value": row[metric]} | {
        name: row[name] for name in ("low", "high")
    }


def path_of(rows: list[Row], tests: list[Row], comparison: Mapping[str, Any]) -> list[Row]:
    """Return from where to where the kept system came: one change at a time, with its gain.

    Query alone, expansion of the untrained LLM, of the aligned one, retrained retriever: as far as the
    run has them; each with the `effect` that its test shows, "" if it was not tested.
    """
    kept, known = comparison["kept"], {row["system"]: row for row in rows}
    if not kept:
        return []
    aligned_name = kept["expanded"].replace("round-", "aligned-")
    names = dict.fromkeys(["query", "untrained", aligned_name, kept["expanded"]])
    effects = {(test["before"], test["after"]): test["effect"] for test in tests}
    steps, before, previous = [], None, ""
    for name in (name for name in names if name in known):
        value = known[name][comparison["metric"]]
        change = None if before is None else value - before
        steps.append(
            {"system": name, "title": known[name]["title"], "value": value, "change": change}
            | {"family": known[name]["family"], "effect": effects.get((previous, name), "")}
        )
        before, previous = value, name
    return steps
