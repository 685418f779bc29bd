"""Confidence intervals by the bootstrap over clusters (Efron and Tibshirani, 1993, chapter 13).

Queries of one cluster are not independent, so whole clusters are drawn, with replacement. All systems of
a dataset are measured on the same draws, and so are their differences.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expandr_core.errors import DataError
from expandr_core.evaluation.metrics import HEADLINE
from expandr_core.seeding import derive_seed

Floats = NDArray[np.float64]
Limits = Mapping[
    tuple[str, str], tuple[float | None, float | None]
]  # by system before, or "", and system
CONFIDENCE_PERCENT = 95
RESAMPLES = 2000
_AT_ONCE = 50


def bootstrap(values: Floats, clusters: NDArray, seed: int) -> Floats:
    """Return the limits of percentile intervals for the means of some columns.

    Args:
        values: (observations, columns)
        clusters: (observations,) the cluster of each.
        seed: of the draws.

    Returns:
        (2, columns) lower and upper limits; NaN if there are fewer than two clusters.

    Of two clusters, a quarter of the draws takes the first one twice:

    >>> bootstrap(np.array([[0.0], [1.0]]), np.array(["a", "b"]), seed=0).ravel().tolist()
    [0.0, 1.0]
    """
    _, of = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(of).astype(np.float64)
    if len(sizes) < 2:
        return np.full((2, values.shape[1]), np.nan)
    sums = np.stack([np.bincount(of, weights=column) for column in values.T], axis=1)
    generator = np.random.default_rng(seed)
    equal = np.full(len(sizes), 1 / len(sizes))
    means = []
    for _ in range(0, RESAMPLES, _AT_ONCE):
        drawn = generator.multinomial(len(sizes), equal, size=_AT_ONCE).astype(np.float64)
        means.append((drawn @ sums) / (drawn @ sizes)[:, None])
    outside = (100 - CONFIDENCE_PERCENT) / 2
    return np.percentile(np.concatenate(means), [outside, 100 - outside], axis=0)


class Intervals(NamedTuple):
    """What the systems of a report reach on a dataset.

    Attributes:
        scores: (queries, systems) nDCG@10
        clusters: how many there are.
        limits: of nDCG@10 by ("", system) and of its difference by (before, after); None where there are
            fewer than two clusters.
    """

    scores: Floats
    clusters: int
    limits: Limits


def intervals(
    comparison: Mapping[str, Any], dataset: str, scores_of: Callable[[str], pa.Table]
) -> Intervals:
    """Compute the intervals of a report on one dataset.

    Args:
        comparison: the content of comparison.json.
        dataset: one of its datasets.
        scores_of: returns query_id, cluster and nDCG@10 of a system on it.
    """
    names = [each["name"] for each in comparison["systems"]]
    clusters, scores = _aligned({name: scores_of(name) for name in names})
    seed, place = derive_seed("report", dataset), {name: at for at, name in enumerate(names)}
    limits = dict(
        zip((("", name) for name in names), _pairs(bootstrap(scores, clusters, seed)), strict=True)
    )
    asked = [
        (each["before"], each["after"])
        for each in comparison["contrasts"]
        if each["dataset"] == dataset
    ]
    if asked:
        means = _by_cluster(scores, clusters)
        changes = [means[:, place[after]] - means[:, place[before]] for before, after in asked]
        found = bootstrap(np.stack(changes, axis=1), np.arange(len(means)), seed)
        limits |= zip(asked, _pairs(found), strict=True)
    return Intervals(scores, len(np.unique(clusters)), limits)


def _pairs(limits: Floats) -> list[tuple[float | None, float | None]]:
    return [(None, None) if np.isnan(low) else (float(low), float(high)) for low, high in limits.T]


def _aligned(tables: dict[str, pa.Table]) -> tuple[NDArray, Floats]:
    """Lay the scores of systems on the same queries side by side.

    Args:
        tables: query_id, cluster and nDCG@10, by system.

    Returns:
        (queries,) clusters and (queries, systems) scores.

    Raises:
        DataError: if the systems were measured on different queries.
    """
    ordered = {name: table.sort_by("query_id") for name, table in tables.items()}
    first = next(iter(ordered.values()))
    for name, table in ordered.items():
        if table["query_id"] != first["query_id"]:
            raise DataError(f"{name} was measured on other queries than {next(iter(ordered))}")
    scores = np.stack([each[HEADLINE].to_numpy() for each in ordered.values()], axis=1)
    return first["cluster"].to_numpy(zero_copy_only=False), scores


def _by_cluster(values: Floats, clusters: NDArray) -> Floats:
    """Average columns within clusters, as the tests do; (clusters, columns)."""
    _, of = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(of)
    return np.stack([np.bincount(of, weights=each) / sizes for each in values.T], axis=1)
