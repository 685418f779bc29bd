"""The cells of a report, and their names: DATASET/SYSTEM/METRIC, or DATASET/BEFORE..AFTER/p.

A dataset may be left out if there is one; of a mean over datasets it is BENCHMARK:SCOPE, such as
BEIR:out-of-domain. A system is called by its name, or by its title as the report shows it, with or
without spaces: `round-1`, `joint round 1` and `joint-1` are the same one.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import titles_of
from expandr_core.evaluation.metrics import MEASURES

DEVIATION = "deviation"
CONTRAST_FIELDS = ("difference", "p", "corrected_p", "wins", "losses", "clusters")
METRIC_NAMES = {measure.title.lower(): name for name, measure in MEASURES.items()}
_LISTED = 40


@dataclass(frozen=True)
class Cell:
    """A number of a report.

    Attributes:
        kind: of row: a system on a dataset, a mean over datasets, or a test of two systems.
        place: the dataset, or BENCHMARK:SCOPE.
        system: that was measured; of a test, the second one.
        before: the first system of a test.
        field: the row's field, such as ndcg_at_10.
        value: the number; None where there is none.
        row: all of the row.
    """

    kind: Literal["score", "mean", "test"]
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


def spelt(field: str) -> str:
    """Spell a field as people do.

    >>> spelt("ndcg_at_10"), spelt("ndcg_at_10_deviation"), spelt("p")
    ('ndcg@10', 'ndcg@10_deviation', 'p')
    """
    return field.replace("_at_", "@")


def cells(comparison: Mapping[str, Any]) -> Iterator[Cell]:
    """Yield every number of a report, from comparison.json."""
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


def find_cell(comparison: Mapping[str, Any], what: str) -> Cell:
    """Find a cell by its name; "" is the headline: what is kept of a run, or the best system.

    Raises:
        DataError: if there is none, with what there is.
    """
    if not what:
        return _headline(comparison)
    every = [each for each in cells(comparison) if each.value is not None]
    *place, system, field = what.split("/") if "/" in what else (what, comparison["metric"])
    fields = {each.field for each in every}
    if METRIC_NAMES.get(field.lower(), field.replace("@", "_at_")) not in fields:
        if len(_called(comparison, field)) != 1:
            raise _unknown("number", field, [spelt(each) for each in sorted(fields)])
        place, system, field = [*place, system], field, comparison["metric"]
    field = METRIC_NAMES.get(field.lower(), field.replace("@", "_at_"))
    before, system = _systems(comparison, system)
    if not before and field in CONTRAST_FIELDS:  # of the table: against the baseline
        before = next(s["baseline"] for s in comparison["systems"] if s["name"] == system)
    found = [each for each in every if each.before == before and each.system == system]
    where = "/".join(place)
    there = list(dict.fromkeys(each.place for each in found if each.kind != "mean" or where))
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
