"""Paired tests of two systems on the same queries, and Holm's correction for several tests.

Queries of one cluster (say, about the same thing) are not independent, so they are averaged and each
cluster is one observation.

The t-test estimates the spread of the differences from the data. Few observations estimate it badly,
and equal ones have none: two of +0.5 would be certain. In these cases the randomisation test replaces
it. That test is exact for few observations: n of them cannot give a p-value below 2 / 2^n.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expandr_core.errors import DataError

Test = Literal["t", "randomisation"]
TEST_NAMES: dict[Test, str] = {"t": "paired t-test", "randomisation": "paired randomisation test"}
DIFFERENCES = pa.schema(
    [
        ("query_id", pa.string()),
        ("before_score", pa.float64()),
        ("after_score", pa.float64()),
        ("difference", pa.float64()),
    ]
)
FEWEST = 10  # observations for a t-test
_RESAMPLES = 9999
_NOTHING = 1e-12  # differences up to this are rounding errors of summed scores
_ROUNDING = 1e-9  # relative; differences closer to each other than this are equal


def name_of_tests(test: Test, observations: Iterable[int]) -> str:
    """Name what was tested by: fewer than FEWEST observations by a randomisation test in any case.

    >>> name_of_tests("t", [7]), name_of_tests("t", [300, 7])
    ('paired randomisation test', 'paired t-test (randomisation test below 10 observations)')
    """
    kinds: set[Test] = {"randomisation" if each < FEWEST else test for each in observations}
    if len(kinds) > 1:
        return f"{TEST_NAMES[test]} (randomisation test below {FEWEST} observations)"
    return TEST_NAMES[kinds.pop() if kinds else test]


class Difference(NamedTuple):
    """How one system differs from another.

    Attributes:
        difference: mean over clusters of (after - before).
        p: probability of a difference as large, in either direction, if the systems were equal.
        clusters: number of independent observations; without clusters, each query is one.
        queries: number of queries.
        wins: queries with a higher value after than before.
        losses: queries with a lower one.
    """

    difference: float
    p: float
    clusters: int
    queries: int
    wins: int
    losses: int


def compare_queries(
    before: pa.Table, after: pa.Table, metric: str, test: Test, seed: int
) -> Difference:
    """Compare two systems on the same queries, joined by id.

    Args:
        before: query_id, cluster and the metric, one row a query.
        after: the same for the other system.
        metric: the column to compare.
        test: "t" for a paired t-test, given FEWEST clusters with unequal differences;
            "randomisation" for 9999 random exchanges of the two systems within clusters, or all
            exchanges if there are fewer.
        seed: of the random exchanges.

    Raises:
        DataError: if the two do not have the same queries in the same clusters.
    """
    change = query_differences(before, after, metric)["difference"].to_numpy()
    clusters = before.sort_by("query_id")["cluster"].to_numpy()
    _, cluster_of = np.unique(clusters, return_inverse=True)
    by_cluster = np.bincount(cluster_of, weights=change) / np.bincount(cluster_of)
    return Difference(
        difference=float(by_cluster.mean()),
        p=paired_p(by_cluster, test, seed),
        clusters=len(by_cluster),
        queries=len(change),
        wins=int((change > 0).sum()),
        losses=int((change < 0).sum()),
    )


def query_differences(before: pa.Table, after: pa.Table, metric: str) -> pa.Table:
    """Return each query's value in two systems, and how it changed, sorted by query_id.

    Args:
        before: query_id, cluster and the metric, one row a query.
        after: the same for the other system.
        metric: the column to compare.

    Returns:
        See DIFFERENCES; a positive difference is a win of the second system.

    Raises:
        DataError: if the two do not have the same queries in the same clusters, or a score is not
            a number.
    """
    before, after = before.sort_by("query_id"), after.sort_by("query_id")
    _require_same_queries(before, after)
    scores = [table[metric].to_numpy() for table in (before, after)]
    for query_id, *values in zip(before["query_id"].to_pylist(), *scores, strict=True):
        if not all(map(math.isfinite, values)):
            raise DataError(
                f"query {query_id!r}: its {metric} is not a number ({values[0]}, {values[1]}); measure "
                "the systems again"
            )
    return pa.table([before["query_id"], *scores, scores[1] - scores[0]], schema=DIFFERENCES)


def _require_same_queries(before: pa.Table, after: pa.Table) -> None:
    """Check two tables that are sorted by query_id."""
    ids, other_ids = before["query_id"].to_pylist(), after["query_id"].to_pylist()
    if ids != other_ids or len(set(ids)) != len(ids) or not ids:
        alone = sorted(set(ids) ^ set(other_ids))
        raise DataError(
            "only systems measured on the same queries, once each, can be compared: "
            f"{len(ids)} and {len(other_ids)} queries, {len(alone)} in one of the two only, "
            f"such as {', '.join(map(repr, alone[:3])) or 'none'}"
        )
    clusters = zip(ids, before["cluster"].to_pylist(), after["cluster"].to_pylist(), strict=True)
    for query_id, cluster, other_cluster in clusters:
        if cluster != other_cluster:
            raise DataError(
                f"query {query_id!r} is in cluster {cluster!r} before, {other_cluster!r} after; "
                "prepare both from the same data"
            )


def paired_p(differences: NDArray[np.float64], test: Test, seed: int) -> float:
    """Return the two-sided p-value of paired differences.

    It is 1 if nothing can be concluded: all differences are zero, or there is only one.

    Args:
        differences: (observations,)
        test: see `compare_queries`.
        seed: see `compare_queries`.

    Of the 2^3 ways to exchange the systems in three pairs, two give a mean difference as large:

    >>> paired_p(np.array([0.1, 0.2, 0.3]), "randomisation", seed=0)
    0.25
    >>> paired_p(np.zeros(5), "t", seed=0), paired_p(np.ones(1), "t", seed=0)
    (1.0, 1.0)

    Two equal differences are no better evidence with the t-test:

    >>> paired_p(np.array([0.5, 0.5]), "t", seed=0)
    0.5
    """
    from scipy import stats

    if len(differences) < 2 or np.abs(differences).max() <= _NOTHING:
        return 1.0
    varied = np.ptp(differences) > _ROUNDING * np.abs(differences).max()
    if test == "t" and varied and len(differences) >= FEWEST:
        return float(stats.ttest_rel(differences, np.zeros_like(differences)).pvalue)
    result = stats.permutation_test(
        (differences,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, 2**22 // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def both_scores(before: pa.Table, after: pa.Table, metric: str) -> frozenset[bytes]:
    """Return what two systems score on each query; only one such, if they score alike.

    Tests with equal ones are the same test, perhaps in the other direction.
    """
    tables = (each.sort_by("query_id") for each in (before, after))
    return frozenset(each[metric].to_numpy().tobytes() for each in tables)


def holm(p_values: Sequence[float], counted: Sequence[bool] | None = None) -> list[float]:
    """Correct p-values for multiple tests by Holm's method.

    Args:
        p_values: of all tests.
        counted: which of them are tests of their own. Of the others, one with a p-value of 1 keeps it,
            and another has the result of the test with the nearest p-value, however that is rounded.

    The smallest of three is multiplied by 3, the next by 2; none gets less than the one before:

    >>> [round(p, 3) for p in holm([0.04, 0.01, 0.03])]
    [0.06, 0.03, 0.06]

    A test that is there twice counts once, and one of equal systems not at all:

    >>> [round(p, 3) for p in holm([0.04, 0.04 + 1e-15, 1.0, 0.01], [True, False, False, True])]
    [0.04, 0.04, 1.0, 0.02]

    NaN shows nothing, like a p-value of 1, and still counts as a test:

    >>> holm([0.01, float("nan")])
    [0.02, 1.0]
    """
    known = [1.0 if math.isnan(p) else p for p in p_values]
    own = [p for p, counts in zip(known, counted or [True] * len(known), strict=True) if counts]
    if not own:
        return [1.0] * len(known)
    # statsmodels' version runs gc.collect() at each call: 0.2 s and more once torch is imported
    order, results = np.argsort(own), np.empty(len(own))
    raised = np.take(own, order) * np.arange(len(own), 0, -1)
    results[order] = np.maximum.accumulate(raised).clip(max=1)
    return [1.0 if p == 1 else float(results[np.abs(np.subtract(own, p)).argmin()]) for p in known]


def fewest_to_tell(significance_level: float, test: Test) -> int:
    """Return how many observations a test needs to reach a level, uncorrected.

    >>> fewest_to_tell(0.05, "randomisation"), 2 / 2**5 < 0.05, 2 / 2**6 < 0.05
    (6, False, True)
    """
    exchanged = 2 + math.floor(math.log2(1 / significance_level))
    return min(FEWEST, exchanged) if test == "t" else exchanged
