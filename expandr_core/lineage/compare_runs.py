"""Compare runs: their numbers by system, tested where the queries are the same, and why they differ.

The first run is compared with each of the others. All tests are one family (Holm).
"""

from typing import Any

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import (
    Contrast,
    MeasuredDataset,
    corrected,
)
from expandr_core.evaluation.metrics import HEADLINE
from expandr_core.evaluation.render import EFFECTS, format_p
from expandr_core.evaluation.significance import Difference as Tested
from expandr_core.evaluation.significance import compare_queries
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.differences import Difference, upstream_differences
from expandr_core.lineage.options import differing_options, named_as_in_runs
from expandr_core.lineage.tables import RowDifference, row_difference
from expandr_core.seeding import derive_seed

SCHEMA = 1  # of what `expandr compare --json` prints
_TABLES = {  # roles of an evaluation's data, what their rows are, and their ids
    "corpus": ("documents", ("passage_id",)),
    "queries": ("queries", ("query_id",)),
    "qrels": ("judgements", ("query_id", "passage_id")),
}
Pair = tuple[Any, Any]


def compare_runs(runs: list[ComparedRun]) -> dict[str, Any]:
    """Compare runs; the first one with each of the others.

    Returns:
        Plain values, as `expandr compare --json` prints them: `rows` by dataset and system with the
        value of each run, its `tests` against the first (or why one is `refused`), and `upstream`: what
        differs before each number that was made otherwise; `differ`: options and code of all of the run.

    Raises:
        DataError: if there are fewer than two runs.
    """
    if len(runs) < 2:
        raise DataError("name at least two runs; `expandr runs` lists them")
    first, *others = runs
    cells = dict.fromkeys(
        (row["dataset"], row["system"]) for each in runs for row in each.comparison["results"]
    )
    rows = [_row(runs, dataset, system) for dataset, system in cells]
    tested = [
        (test, (row["dataset"], Contrast(before=first.run.name, after=test["run"],
                                         question=row["system"]), test.pop("tested")))
        for row in rows
        for test in row["tests"]
        if "tested" in test
    ]  # fmt: skip
    level = first.comparison["significance_level"]
    for (test, _), record in zip(tested, corrected([t for _, t in tested], level), strict=True):
        fields = (*Tested._fields, "corrected_p", "significant", "effect")
        test.update({name: record[name] for name in fields})
    return {
        "schema": SCHEMA,
        "runs": [each.run.name for each in runs],
        "metric": HEADLINE,
        "differ": {
            each.run.name: {
                "options": _plain(differing_options(first.run, each.run)),
                "code": _code(first, each),
            }
            for each in others
        },
        "rows": rows,
    }


def _code(first: ComparedRun, other: ComparedRun) -> dict[str, list[Any]]:
    """Return the commits and versions of libraries that differ between all artifacts of two runs."""
    found: list[dict[str, str]] = []
    for each in (first, other):
        facts: dict[str, dict[str, None]] = {}
        for step in each.run.steps:
            manifest = each.lineage.node(step.artifact.key).manifest
            own = {"commit": manifest.get("commit", ""), **manifest.get("libraries", {})}
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
            row["upstream"].append(_upstream(first, other, dataset, system))
    return row


def _made_otherwise(first: ComparedRun, other: ComparedRun, dataset: str, system: str) -> bool:
    """Tell whether two evaluations differ in anything, even if their means happen to be equal."""
    digests = (
        [run.lineage.node(key).manifest["digest"] for _, _, key in keys]
        for run in (first, other)
        for keys in [run.measured.evaluations(dataset, system)]
    )
    return next(digests) != next(digests)


def _test(first: ComparedRun, other: ComparedRun, dataset: str, system: str) -> dict[str, Any]:
    """Test a system's difference between two runs, or say why that cannot be."""
    for role in ("queries", "qrels"):
        what = _TABLES[role][0]
        if difference := _rows_that_differ(first, other, dataset, system, role):
            return {"refused": f"not paired: the runs have other {difference.sentence(what)}"}
    test = first.comparison["test"]
    seed = derive_seed("compare", first.measured.seed)
    try:
        before, after = (each.scores(dataset, system) for each in (first, other))
        return {"tested": compare_queries(before, after, HEADLINE, test, seed)}
    except DataError as error:
        return {"refused": f"not paired: {error}"}


def _rows_that_differ(
    first: ComparedRun, other: ComparedRun, dataset: str, system: str, role: str
) -> RowDifference | None:
    """Compare the tables of two runs; None if they are the same."""
    files = [list(each.data(dataset, system, role)) for each in (first, other)]
    for one, counterpart in zip(*files, strict=False):
        if one.digest != counterpart.digest:
            paths = first.store.local(one), other.store.local(counterpart)
            if difference := row_difference(*paths, _TABLES[role][1]):
                return difference
    return None


def _upstream(first: ComparedRun, other: ComparedRun, dataset: str, system: str) -> dict[str, Any]:
    """Say what differs upstream of a number that changed."""
    options = differing_options(first.run, other.run)
    found: dict[str, dict[str, Any]] = {
        name: {} for name in ("options", "code", "seeds", "libraries", "files", "inputs")
    }
    firsts: list[dict[str, Any]] = []
    keys = (each.measured.evaluations(dataset, system) for each in (first, other))
    places = MeasuredDataset(**first.measured.datasets[dataset]).keys()
    for (subset, _, one), (_, _, counterpart) in zip(*keys, strict=False):
        for each in upstream_differences(first.lineage, other.lineage, (one, counterpart)):
            named = named_as_in_runs(each.options, options, each.stage)
            found["options"] |= named
            found["libraries"] |= each.libraries
            found["files"] |= {n.removeprefix("files."): pair for n, pair in each.sources.items()}
            found["inputs"] |= {f"{each.stage}: {n}": pair for n, pair in each.inputs.items()}
            for name, pair in each.facts.items():
                part = found["seeds" if name == "seed" else "code"]
                if name == "version" or pair not in part.values():
                    part[name if name not in (*part, "version") else f"{each.stage}: {name}"] = pair
            if each.first:
                paths = [" ← ".join([f"measured on {places[subset]}", *p]) for p in each.paths]
                firsts.append({"paths": paths, "artifacts": each.keys, "what": _said(each, named)})
    plain: dict[str, Any] = {name: _plain(pairs) for name, pairs in found.items() if pairs}
    for role, (what, _) in _TABLES.items():
        if difference := _rows_that_differ(first, other, dataset, system, role):
            plain[what] = difference.plain() | {"said": difference.sentence(what)}
    return {"run": other.run.name, **plain, "first": firsts}


def _said(difference: Difference, options: dict[str, Pair]) -> list[str]:
    """Say how two artifacts differ by themselves."""
    lines = [
        f"{kind}{name}: {one} → {other}"
        for kind, pairs in (
            ("option ", options),
            ("", difference.facts),
            ("library ", difference.libraries),
            ("file ", {n.removeprefix("files."): p for n, p in difference.sources.items()}),
            ("input ", difference.inputs),
        )
        for name, (one, other) in pairs.items()
    ]
    return lines or ["the same inputs, options, code and libraries, but other bytes"]


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


def said_of(upstream: dict[str, Any]) -> list[str]:
    """Say what differs upstream of a number, most telling first."""
    said = [
        f"{name}: {one} → {other}"
        for part in ("options", "seeds", "inputs", "code", "libraries")
        for name, (one, other) in upstream.get(part, {}).items()
    ]
    tables = [upstream[what]["said"] for what, _ in _TABLES.values() if what in upstream]
    files = upstream.get("files", {})
    return [
        *said,
        *tables,
        *([f"{len(files)} raw files, {min(files)} among them"] if files else []),
    ]


def _plain(pairs: dict[str, Pair]) -> dict[str, list[Any]]:
    return {name: list(pair) for name, pair in pairs.items()}
