"""Compare runs: their numbers by system, tested where the queries are the same, and why they differ.

The first run is compared with each of the others. All tests are one family (Holm).
"""

from collections import Counter
from dataclasses import replace
from typing import Any

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import Contrast, corrected
from expandr_core.evaluation.metrics import HEADLINE
from expandr_core.evaluation.render import EFFECTS, format_p
from expandr_core.evaluation.significance import Difference as Tested
from expandr_core.evaluation.significance import both_scores, compare_queries
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.options import differing_options
from expandr_core.lineage.upstream import plain_pairs, rows_that_differ, said_of, upstream
from expandr_core.seeding import derive_seed

SCHEMA = 1  # of what `expandr compare --json` prints


def compare_runs(runs: list[ComparedRun]) -> dict[str, Any]:
    """Compare runs; the first one with each of the others.

    Returns:
        Plain values, as `expandr compare --json` prints them: `rows` by dataset and system with the
        value of each run, its `tests` against the first (or why one is `refused`), and `upstream`: what
        differs before each number that was made otherwise; `differ`: options and code of all of the run;
        `apart`: why a run shares no row with the first. A run that is named again is "NAME (2)".

    Raises:
        DataError: if there are fewer than two runs.
    """
    if len(runs) < 2:
        raise DataError("name at least two runs; `expandr runs` lists them")
    first, *others = runs = _told_apart(runs)
    cells = dict.fromkeys(
        (row["dataset"], row["system"]) for each in runs for row in each.comparison["results"]
    )
    rows = [_row(runs, dataset, system) for dataset, system in cells]
    tested = [
        (test, (row["dataset"], Contrast(before=first.run.name, after=test["run"],
                                         question=row["system"]), *test.pop("tested")))
        for row in rows
        for test in row["tests"]
        if "tested" in test
    ]  # fmt: skip
    level, asked = first.comparison["significance_level"], first.comparison["test"]
    records = corrected([each for _, each in tested], level, asked)
    for (test, _), record in zip(tested, records, strict=True):
        fields = (*Tested._fields, "corrected_p", "significant", "effect")
        test.update({name: record[name] for name in fields})
    return {
        "schema": SCHEMA,
        "runs": [each.run.name for each in runs],
        "metric": HEADLINE,
        "differ": {
            each.run.name: {
                "options": plain_pairs(differing_options(first.run, each.run)),
                "code": _code(first, each),
            }
            for each in others
        },
        "apart": {each.run.name: said for each in others if (said := _apart(first, each))},
        "rows": rows,
    }


def _told_apart(runs: list[ComparedRun]) -> list[ComparedRun]:
    """Number the runs of one name, such as those of a store and its copy."""
    seen, found = Counter[str](), []
    for each in runs:
        name = each.run.name
        seen[name] += 1
        named = f"{name} ({seen[name]})" if seen[name] > 1 else name
        found.append(replace(each, run=each.run.model_copy(update={"name": named})))
    return found


def _apart(first: ComparedRun, other: ComparedRun) -> str:
    """Say why two runs have no number in common; empty if they have one."""
    cells = [
        {(row["dataset"], row["system"]) for row in each.comparison["results"]}
        for each in (first, other)
    ]
    if cells[0] & cells[1]:
        return ""
    datasets = [sorted({dataset for dataset, _ in each}) for each in cells]
    if set(datasets[0]) & set(datasets[1]):
        return "the runs measured other systems; no number of one has a counterpart"
    one, counterpart = (", ".join(each) for each in datasets)
    return f"the runs measured other datasets, so no number has a counterpart: {one}; {counterpart}"


def _code(first: ComparedRun, other: ComparedRun) -> dict[str, list[Any]]:
    """Return the commits and versions of libraries that differ between all artifacts of two runs."""
    found: list[dict[str, str]] = []
    for each in (first, other):
        facts: dict[str, dict[str, None]] = {}
        for step in each.run.steps:
            manifest = each.lineage.node(step.artifact.key).manifest
            own = {name: manifest.get(name) for name in ("commit", "python")}
            own |= manifest.get("libraries", {})
            own |= {f"{n} (vLLM's)": v for n, v in manifest.get("vllm_libraries", {}).items()}
            for name, value in own.items():
                facts.setdefault(name, {})[value or "not known"] = None
        found.append({name: ", ".join(sorted(values)) for name, values in facts.items()})
    names = [name for name in found[0] if found[1].get(name, found[0][name]) != found[0][name]]
    return {name: [each[name] for each in found] for name in names}


def _row(runs: list[ComparedRun], dataset: str, system: str) -> dict[str, Any]:
    """Compare one system on one dataset in all runs."""
    first, *others = runs
    found = [each.row(dataset, system) for each in runs]
    titles = [
        s["title"] for each in runs for s in each.comparison["systems"] if s["name"] == system
    ]
    row: dict[str, Any] = {
        "dataset": dataset,
        "system": system,
        "title": titles[0],
        "values": {e.run.name: r and r[HEADLINE] for e, r in zip(runs, found, strict=True)},
        "tests": [],
        "upstream": [],
    }
    base = found[0]
    for other, theirs in zip(others, found[1:], strict=True):
        if base is None or theirs is None:
            continue
        row["tests"].append({"run": other.run.name, **_test(first, other, dataset, system)})
        if _made_otherwise(first, other, dataset, system):
            row["upstream"].append(upstream(first, other, dataset, system))
    return row


def _made_otherwise(first: ComparedRun, other: ComparedRun, dataset: str, system: str) -> bool:
    """Tell whether two evaluations differ in anything, even if their means happen to be equal."""
    one, counterpart = (
        {
            at: each.lineage.node(key).manifest["digest"]
            for at, key in each.evaluations(dataset, system).items()
        }
        for each in (first, other)
    )
    return one != counterpart


def _test(first: ComparedRun, other: ComparedRun, dataset: str, system: str) -> dict[str, Any]:
    """Test a system's difference between two runs, or say why that cannot be."""
    for role in ("queries", "qrels"):
        if difference := rows_that_differ(first, other, dataset, system, role):
            return {"refused": f"not paired: the runs have other {difference['said']}"}
    test, rounded = first.comparison["test"], first.has_seeds or other.has_seeds
    seed = derive_seed("compare", first.measured.seed)
    try:
        before, after = (each.scores(dataset, system, rounded) for each in (first, other))
        change = compare_queries(before, after, HEADLINE, test, seed)
        return {"tested": (change, both_scores(before, after, HEADLINE))}
    except DataError as error:
        return {"refused": f"not paired: {error}"}


def as_table(compared: dict[str, Any]) -> list[dict[str, str]]:
    """Lay a comparison of runs out as rows of texts, for a terminal or for Prefect."""
    table = []
    for row in compared["rows"]:
        cells = {"dataset": row["dataset"], "system": row["title"]}
        for run, value in row["values"].items():
            cells[run] = "" if value is None else f"{value:.4f}"
        for test in row["tests"]:
            run = test["run"]
            cells[f"{run}: test"] = test.get("refused") or (
                f"{test['difference']:+.4f}, p = {format_p(test['corrected_p'])} "
                f"({EFFECTS[test['effect']]})"
            )
        for each in row["upstream"]:
            cells[f"{each['run']}: upstream"] = "; ".join(said_of(each)) or "nothing known"
        table.append(cells)
    names = dict.fromkeys(name for cells in table for name in cells)
    return [{name: cells.get(name, "") for name in names} for cells in table]
