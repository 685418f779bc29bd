"""What differs upstream of a number between two runs: options, seeds, code, libraries, rows."""

import functools
from pathlib import Path
from typing import Any

from expandr_core.evaluation.comparison import dataset_key
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.differences import Difference, upstream_differences
from expandr_core.lineage.options import differing_options, named_as_in_runs
from expandr_core.lineage.tables import RowDifference, row_difference

Pair = tuple[Any, Any]
TABLES = {  # roles of an evaluation's data, what their rows are, and their ids
    "corpus": ("documents", ("passage_id",)),
    "queries": ("queries", ("query_id",)),
    "qrels": ("judgements", ("query_id", "passage_id")),
}


def rows_that_differ(
    first: ComparedRun, other: ComparedRun, dataset: str, system: str, role: str
) -> dict[str, Any] | None:
    """Compare a table of two runs that a system was measured with.

    Returns:
        How many rows differ, and which come first; of the first subset in which any do. None if all are
        the same, but perhaps in another order.
    """
    what, ids = TABLES[role]
    files, others = (each.data(dataset, system, role) for each in (first, other))
    for subset, one in files.items():
        counterpart = others.get(subset, one)
        if one.digest != counterpart.digest:
            difference = _rows(first.store.local(one), other.store.local(counterpart), ids)
            if difference:
                said = difference.sentence(f"{what} of {subset}" if subset else what)
                return difference.plain() | {"said": said}
    return None


@functools.lru_cache(maxsize=64)
def _rows(before: Path, after: Path, ids: tuple[str, ...]) -> RowDifference:
    """Compare two files of artifacts, which do not change; every system asks about the same ones."""
    return row_difference(before, after, ids)


def upstream(first: ComparedRun, other: ComparedRun, dataset: str, system: str) -> dict[str, Any]:
    """Say what differs upstream of a number that changed."""
    options = differing_options(first.run, other.run)
    found: dict[str, dict[str, Any]] = {
        name: {} for name in ("options", "code", "seeds", "libraries", "files", "inputs")
    }
    firsts: dict[tuple[str, str], dict[str, Any]] = {}
    keys, others = (each.evaluations(dataset, system) for each in (first, other))
    found["inputs"] |= _measured_otherwise(set(keys), set(others))
    for subset, seed in keys:
        if (subset, seed) not in others:
            continue
        pair = keys[subset, seed], others[subset, seed]
        for each in upstream_differences(first.lineage, other.lineage, pair):
            named = named_as_in_runs(each.options, options, each.stage)
            found["options"] |= named
            found["libraries"] |= each.libraries
            found["files"] |= each.sources
            found["inputs"] |= {f"{each.stage}: {n}": pair for n, pair in each.inputs.items()}
            for name, values in each.facts.items():
                part = found["seeds" if name == "seed" else "code"]
                if name == "version" or values not in part.values():
                    part[name if name not in (*part, "version") else f"{each.stage}: {name}"] = (
                        values
                    )
            if each.first:
                place = f"measured on {dataset_key(dataset, subset)}"
                paths = (" ← ".join([place, *path]) for path in each.paths)
                known = {"paths": [], "artifacts": each.keys, "what": _said(each, named)}
                known = firsts.setdefault(each.keys, known)
                known["paths"] = list(dict.fromkeys([*known["paths"], *paths]))
    plain: dict[str, Any] = {name: plain_pairs(pairs) for name, pairs in found.items() if pairs}
    for role, (what, _) in TABLES.items():
        if difference := rows_that_differ(first, other, dataset, system, role):
            plain[what] = difference
    return {"run": other.run.name, **plain, "first": list(firsts.values())}


def _measured_otherwise(
    before: set[tuple[str, int]], after: set[tuple[str, int]]
) -> dict[str, Pair]:
    """Say which evaluations only one of two runs has: other seeds or other subsets.

    >>> _measured_otherwise({("", 0), ("", 1)}, {("", 0)})
    {'number of seeds': (2, 1)}
    """
    sides = before, after
    facts = {
        "number of seeds": [len({seed for _, seed in each}) for each in sides],
        "subsets": [", ".join(sorted({subset for subset, _ in each})) for each in sides],
    }
    return {name: (one, other) for name, (one, other) in facts.items() if one != other}


def _said(difference: Difference, options: dict[str, Pair]) -> list[str]:
    """Say how two artifacts differ by themselves."""
    known = (
        ("option ", options),
        ("", difference.facts),
        ("library ", difference.libraries),
        ("file ", difference.sources),
        ("input ", difference.inputs),
    )
    if lines := [_line(kind, name, pair) for kind, pairs in known for name, pair in pairs.items()]:
        return lines
    if difference.machine:
        return [_line("", name, pair) for name, pair in difference.machine.items()]
    if not difference.code_known:
        return ["the same inputs, options and libraries; the code is not known to the commit, "
                "and may differ"]  # fmt: skip
    return ["the same inputs, options, code and libraries, but other bytes"]


def _line(kind: str, name: str, pair: Pair) -> str:
    return f"{kind}{name}: {pair[0]} → {pair[1]}"


def said_of(upstream: dict[str, Any]) -> list[str]:
    """Say what differs upstream of a number, most telling first."""
    said = [
        f"{name}: {one} → {other}"
        for part in ("options", "seeds", "inputs", "code", "libraries")
        for name, (one, other) in upstream.get(part, {}).items()
    ]
    said += [upstream[what]["said"] for what, _ in TABLES.values() if what in upstream]
    if files := upstream.get("files", {}):
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        said.append(f"raw files: {min(files)}{more}")
    return said or list(dict.fromkeys(what for each in upstream["first"] for what in each["what"]))


def plain_pairs(pairs: dict[str, Pair]) -> dict[str, list[Any]]:
    """Return pairs as JSON has them."""
    return {name: list(pair) for name, pair in pairs.items()}
