"""The cells of a report, and their names: DATASET/SYSTEM/METRIC, or DATASET/BEFORE..AFTER/p.

The limits of an interval are METRIC_low and METRIC_high; a number of the audit of leakage is such as
leakage.any.queries.

A dataset may be left out if there is one; of a mean over datasets it is BENCHMARK:SCOPE, such as
BEIR:out-of-domain. A system is called by its name, or by its title as the report shows it, with or
without spaces: `round-1`, `joint round 1` and `joint-1` are the same one.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import titles_of
from expandr_core.evaluation.leakage import MARKS
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.lineage.intervals import Limits

DEVIATION = "deviation"
LIMITS = ("low", "high")  # of an interval
CONTRAST_FIELDS = ("difference", "p", "corrected_p", "wins", "losses", "clusters")
AUDIT_FIELDS = (
    "queries",
    "gain",
    *(f"{mark}.queries" for mark in (*MARKS, "any")),
    "any.gain_without",
)
METRIC_NAMES = {measure.title.lower(): name for name, measure in MEASURES.items()}
_LISTED = 40


@dataclass(frozen=True)
class Cell:
    """A number of a report.

    Attributes:
        kind: of row: a system on a dataset, a mean over datasets, a test of two systems, or an audit.
        place: the dataset, or BENCHMARK:SCOPE.
        system: that was measured; of a test, the second one.
        before: the first system of a test.
        field: the row's field, such as ndcg_at_10.
        value: the number; None where there is none.
        row: all of the row.
    """

    kind: Literal["score", "mean", "test", "audit"]
    place: str
    system: str
    before: str
    field: str
    value: float | None
    row: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What `expandr explain` calls it."""
        system = f"{self.before}..{self.system}" if self.before else self.system
        return f"{self.place}/{system}/{spelt(self.field)}"

    @property
    def limit(self) -> int | None:
        """Which limit of an interval it is: 0 the lower, 1 the upper; None if it is none."""
        side = self.field.rpartition("_")[2]
        return LIMITS.index(side) if side in LIMITS else None


def spelt(field: str) -> str:
    """Spell a field as people do.

    >>> spelt("ndcg_at_10"), spelt("ndcg_at_10_deviation"), spelt("p")
    ('ndcg@10', 'ndcg@10_deviation', 'p')
    """
    return field.replace("_at_", "@")


def cells(
    comparison: Mapping[str, Any], limits_of: Callable[[str], Limits] | None = None
) -> Iterator[Cell]:
    """Yield every number of a report.

    Args:
        comparison: the content of comparison.json.
        limits_of: returns the limits of the intervals on a dataset; these are left out without it.
    """
    metrics = [*MEASURES, *(f"{name}_{DEVIATION}" for name in MEASURES)]
    for row in comparison["results"]:
        for name in (*metrics, "queries"):
            yield Cell("score", row["dataset"], row["system"], "", name, row.get(name), row)
    for row in comparison["means"]:
        place = f"{row['benchmark']}:{row['scope']}"
        for name in metrics:
            yield Cell("mean", place, row["system"], "", name, row.get(name), row)
    for row in comparison["contrasts"]:
        for name in CONTRAST_FIELDS:
            yield Cell("test", row["dataset"], row["after"], row["before"], name, row[name], row)
    for row in comparison["leakage"]:
        for name in AUDIT_FIELDS:
            mark, _, number = name.rpartition(".")
            value = ((row[mark] or {}) if mark else row).get(number)
            name = f"leakage.{name}"
            yield Cell("audit", row["dataset"], row["system"], "", name, value, row)
    if limits_of is not None:
        yield from _limits(comparison, limits_of)


def _limits(comparison: Mapping[str, Any], limits_of: Callable[[str], Limits]) -> Iterator[Cell]:
    """Yield the limits of all intervals."""
    known = {dataset["name"]: limits_of(dataset["name"]) for dataset in comparison["datasets"]}
    rows = [(row, "", row["system"], comparison["metric"]) for row in comparison["results"]]
    rows += [(row, row["before"], row["after"], "difference") for row in comparison["contrasts"]]
    for row, before, system, number in rows:
        kind: Literal["score", "test"] = "test" if before else "score"
        limits = known[row["dataset"]][before, system]
        for side, value in zip(LIMITS, limits, strict=True):
            yield Cell(kind, row["dataset"], system, before, f"{number}_{side}", value, row)


def find_cell(comparison: Mapping[str, Any], what: str, limits_of: Callable[[str], Limits]) -> Cell:
    """Find a cell by its name; "" is the headline: what is kept of a run, or the best system.

    The limits of intervals are computed only if one is asked for.

    Raises:
        DataError: if there is none, with what there is.
    """
    if not what:
        return _headline(comparison)
    limit = what.endswith(tuple(f"_{side}" for side in LIMITS))
    every = [
        each for each in cells(comparison, limits_of if limit else None) if each.value is not None
    ]
    *place, system, field = what.split("/") if "/" in what else (what, comparison["metric"])
    fields = {each.field for each in every}
    if _field(field) not in fields:
        if len(_called(comparison, field)) != 1:
            raise _unknown("number", field, [spelt(each) for each in sorted(fields)])
        place, system, field = [*place, system], field, comparison["metric"]
    field = _field(field)
    before, system = _systems(comparison, system)
    tested = (*CONTRAST_FIELDS, *(f"difference_{side}" for side in LIMITS))
    if not before and field in tested:  # of the table: against the baseline
        before = next(s["baseline"] for s in comparison["systems"] if s["name"] == system)
    found = [each for each in every if each.before == before and each.system == system]
    where = "/".join(place)
    told = () if where else ("mean",) if field.startswith("leakage.") else ("mean", "audit")
    there = list(dict.fromkeys(each.place for each in found if each.kind not in told))
    if where and where not in there:
        raise _unknown("dataset", where, there)
    if not where and len(there) > 1:
        raise DataError(
            f"{what!r} is measured on several datasets; say {' or '.join(there)} before it"
        )
    found = [each for each in found if each.place == (where or (there or [""])[0])]
    matching = [each for each in found if each.field == field]
    if not matching:
        raise _unknown("number", spelt(field), [each.name for each in found or every])
    return matching[0]


def _field(name: str) -> str:
    """Return the field that is called so.

    >>> _field("nDCG@10"), _field("ndcg@10_low"), _field("leakage.any.queries")
    ('ndcg_at_10', 'ndcg_at_10_low', 'leakage.any.queries')
    """
    return METRIC_NAMES.get(name.lower(), name.replace("@", "_at_"))


def _headline(comparison: Mapping[str, Any]) -> Cell:
    """Return the headline metric of what is kept, or of the best system, on the first dataset."""
    metric, kept = comparison["metric"], comparison["kept"]
    dataset = comparison["datasets"][0]["name"]
    rows = [row for row in comparison["results"] if row["dataset"] == dataset]
    best = max(rows, key=lambda row: row[metric])
    row = next((each for each in rows if kept and each["system"] == kept["expanded"]), best)
    return Cell("score", dataset, row["system"], "", metric, row[metric], row)


def _systems(comparison: Mapping[str, Any], called: str) -> tuple[str, str]:
    """Return the names of the systems before and after; a single one is after."""
    titles = titles_of(dict(comparison))
    before, between, after = called.rpartition("..")
    found = []
    for name in (before, after) if between else (after,):
        alike = _called(comparison, name)
        if len(alike) != 1:
            raise _unknown("system", name, [f"{each} ({titles[each]})" for each in titles])
        found += alike
    return (found[0], found[1]) if between else ("", found[0])


def _called(comparison: Mapping[str, Any], name: str) -> list[str]:
    """Return the systems that are called so."""
    titles = titles_of(dict(comparison))
    return [name] if name in titles else [n for n, title in titles.items() if _same(name, title)]


def _same(called: str, title: str) -> bool:
    """Tell whether a title is meant.

    >>> _same("joint-1", "joint round 1"), _same("joint round 1", "joint round 1")
    (True, True)
    """
    words = _words(title)
    return _words(called) in (words, [word for word in words if word != "round"])


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9+']+", text.lower())


def _unknown(what: str, name: str, there: Sequence[str]) -> DataError:
    shown = "\n  ".join(dict.fromkeys(there[:_LISTED])) or "none"
    rest = f"\n  and {len(there) - _LISTED} more" if len(there) > _LISTED else ""
    return DataError(f"there is no {what} {name!r} in this report; there are:\n  {shown}{rest}")
