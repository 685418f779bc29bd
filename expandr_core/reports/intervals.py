"""Confidence intervals by the bootstrap over clusters (Efron and Tibshirani, 1993, chapter 13).

Queries of one cluster are not independent, so whole clusters are drawn, with replacement. All systems of
a dataset are measured on the same draws, and so are their differences.
"""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expandr_core.errors import DataError
from expandr_core.evaluation.metrics import HEADLINE

Floats = NDArray[np.float64]
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


def aligned(tables: dict[str, pa.Table]) -> tuple[NDArray, NDArray, Floats]:
    """Lay the scores of systems on the same queries side by side.

    Args:
        tables: query_id, cluster and nDCG@10, by system.

    Returns:
        (queries,) ids and clusters, and (queries, systems) scores.

    Raises:
        DataError: if the systems were measured on different queries.
    """
    ordered = {name: table.sort_by("query_id") for name, table in tables.items()}
    first = next(iter(ordered.values()))
    for name, table in ordered.items():
        if table["query_id"] != first["query_id"]:
            raise DataError(f"{name} was measured on other queries than {next(iter(ordered))}")
    ids, clusters = (first[name].to_numpy(zero_copy_only=False) for name in ("query_id", "cluster"))
    scores = np.stack([each[HEADLINE].to_numpy() for each in ordered.values()], axis=1)
    return ids, clusters, scores


def by_cluster(values: Floats, clusters: NDArray) -> Floats:
    """Average columns within clusters, as the tests do; (clusters, columns)."""
    _, of = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(of)
    return np.stack([np.bincount(of, weights=each) / sizes for each in values.T], axis=1)
