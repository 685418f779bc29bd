"""What a comparison asks, and the tests that answer it.

Contrasts are tested on nDCG@10; the p-values of all contrasts on all datasets are one family (Holm).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from expandr_core.data.catalog import Benchmark, Domain
from expandr_core.errors import DataError
from expandr_core.evaluation.metrics import HEADLINE
from expandr_core.evaluation.significance import Difference, Test, fewest_to_tell, holm
from expandr_core.options.base import Options, Positive

SCHEMA = 1  # of comparison.json
SubsetsAre = Literal["parts", "seeds", "worlds"]
SHOWN = 5  # wins and losses per contrast
_DIGITS = 12  # so that a mean of equal scores equals them, and is no win


class System(Options):
    """A system that is measured."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    title: str
    baseline: str = Field(default="", description="System that tables compare it with, if any.")
    seeds: Positive = Field(default=1, description="How many evaluations of it there are.")


class Contrast(Options):
    """A question about two systems, tested on every dataset."""

    before: str
    after: str
    question: str


class MeasuredDataset(Options):
    """A dataset that is measured on; one without subsets has the subset ""."""

    name: str
    benchmark: Benchmark = "other"
    domain: Domain = "other"
    subsets: tuple[str, ...] = ("",)

    def keys(self) -> dict[str, str]:
        """Return by subset how inputs name it.

        >>> MeasuredDataset(name="scifact").keys()
        {'': 'scifact'}
        >>> MeasuredDataset(name="cqadupstack", subsets=("gis", "tex")).keys()
        {'gis': 'cqadupstack/gis', 'tex': 'cqadupstack/tex'}
        """
        return {subset: dataset_key(self.name, subset) for subset in self.subsets}


def dataset_key(dataset: str, subset: str) -> str:
    """Return how inputs name a dataset, or a subset of it."""
    return f"{dataset}/{subset}" if subset else dataset


def join_subsets(
    subsets: dict[str, list[pa.Table]], rounded: bool, subsets_are: SubsetsAre = "parts"
) -> tuple[pa.Table, pa.Table]:
    """Join what a system reaches on each query: mean over seeds, all subsets together.

    Args:
        subsets: the per-query tables (query_id, cluster, HEADLINE) of each seed, by subset.
        rounded: whether scores are compared with means over seeds, which are not exact.
        subsets_are: if "seeds", a cluster is the same in all subsets; else each has clusters of its own.

    Returns:
        Two tables with query_id (after "SUBSET/", if there are subsets), cluster and HEADLINE: once as
        it is, and once weighted so that the mean over all queries is the unweighted mean of the
        subsets' means. A test of the weighted one is a test of the dataset's result.

    Raises:
        DataError: if the seeds were not measured on the same queries.

    With one query in subset a and two in b, the three weigh 3 / (2 * 1) and twice 3 / (2 * 2):

    >>> tables = {subset: [pa.table({"query_id": ids, "cluster": ids, HEADLINE: [1.0] * len(ids)})]
    ...           for subset, ids in {"a": ["1"], "b": ["1", "2"]}.items()}
    >>> [table.to_pydict()[HEADLINE] for table in join_subsets(tables, rounded=False)]
    [[1.0, 1.0, 1.0], [1.5, 0.75, 0.75]]
    """
    frames = []
    for subset, seeds in subsets.items():
        rows = pd.concat([each.select(list(_SCORED.names)).to_pandas() for each in seeds])
        frame = rows.groupby(["query_id", "cluster"], sort=True)[HEADLINE].mean().reset_index()
        if len(rows) != len(seeds) * len(frame):
            raise DataError(
                f"the {len(seeds)} seeds of a system were measured on different queries; measure all "
                "of them on the same data"
            )
        if rounded:
            frame[HEADLINE] = frame[HEADLINE].round(_DIGITS)
        prefix = f"{subset}/" if subset else ""
        prefixed = ["query_id"] if subsets_are == "seeds" else ["query_id", "cluster"]
        frame[prefixed] = prefix + frame[prefixed]
        frames.append(frame)
    # A query of a small subset counts more; without subsets the weight is exactly 1.
    total = sum(map(len, frames))
    weights = np.concatenate([np.full(len(f), total / (len(frames) * len(f))) for f in frames])
    joined = pa.Table.from_pandas(pd.concat(frames), schema=_SCORED, preserve_index=False)
    weighted = pa.array(joined[HEADLINE].to_numpy() * weights)
    return joined, joined.set_column(2, HEADLINE, weighted)


_SCORED = pa.schema([("query_id", pa.string()), ("cluster", pa.string()), (HEADLINE, pa.float64())])


def corrected(
    tested: Sequence[tuple[str, Contrast, Difference, frozenset[bytes]]], level: float, test: Test
) -> list[dict[str, Any]]:
    """Correct the p-values of all contrasts together, and say what each has shown.

    Two systems that score alike on every query leave nothing to test, and two contrasts of the same
    scores are one test: counted again, they would only weaken the others.

    Args:
        tested: dataset, contrast, outcome, and what both systems score (see `both_scores`).
        level: a contrast is significant if its corrected p is below.
        test: that was asked for.

    Returns:
        Records with the fields of the contrast and of the Difference, corrected_p, significant, counted
        (as a test of its own) and effect: "better", "worse", "unclear", "equal" on every query, or "too
        few" observations to show anything.
    """
    places = [(dataset, scores) for dataset, _, _, scores in tested]
    counted = [len(at[1]) > 1 and at not in places[:number] for number, at in enumerate(places)]
    p_values = holm([change.p for _, _, change, _ in tested], counted)
    records = []
    for (dataset, contrast, change, scores), own, p in zip(tested, counted, p_values, strict=True):
        record = {"dataset": dataset, **contrast.model_dump(), **change._asdict()}
        effect = "too few" if change.clusters < fewest_to_tell(level, test) else "unclear"
        if len(scores) == 1:
            effect = "equal"
        elif p < level:
            effect = "better" if change.difference > 0 else "worse"
        record |= {"corrected_p": p, "significant": p < level, "effect": effect, "counted": own}
        records.append(record)
    return records


def read_comparison(folder: Path) -> dict[str, Any]:
    """Read comparison.json of an artifact of the stage compare.

    Raises:
        DataError: if another version wrote it.
    """
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    if comparison.get("schema") != SCHEMA:
        raise DataError(
            f"{folder}/comparison.json has schema {comparison.get('schema')}, this version reads "
            f"{SCHEMA}; compare the systems again"
        )
    return comparison


def tests_in(comparison: dict[str, Any]) -> int:
    """Count the tests that are corrected together; of an earlier version, they are all contrasts."""
    return sum(each.get("counted", True) for each in comparison["contrasts"])


def titles_of(comparison: dict[str, Any]) -> dict[str, str]:
    """Return the systems' titles by name, from comparison.json."""
    return {system["name"]: system["title"] for system in comparison["systems"]}


def examples(differences: pa.Table) -> list[dict[str, Any]]:
    """Return the queries that won and lost most in each contrast, over all datasets.

    Args:
        differences: dataset, before, after, query_id, query, both scores, and difference.

    Returns:
        Rows of it, SHOWN wins and SHOWN losses per contrast at most, each beginning with the largest.
    """
    rows = []
    pairs = zip(differences["before"].to_pylist(), differences["after"].to_pylist(), strict=True)
    grouped: dict[tuple[str, str], list[int]] = {}
    for row, pair in enumerate(pairs):
        grouped.setdefault(pair, []).append(row)
    order = [("difference", "descending"), ("dataset", "ascending"), ("query_id", "ascending")]
    for places in grouped.values():
        queries = differences.take(places).sort_by(order)
        wins = queries.slice(0, SHOWN).to_pylist()
        losses = queries.slice(max(0, len(queries) - SHOWN)).to_pylist()[::-1]
        rows += [row for row in wins if row["difference"] > 0]
        rows += [row for row in losses if row["difference"] < 0]
    return rows
