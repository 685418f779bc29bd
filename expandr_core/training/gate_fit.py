"""Fit the weight of the expansions and the gate, on few queries without fooling oneself.

The gate is a logistic regression: does the expansion help this query? Its label is the sign of the gain
in nDCG@10, weighted by the gain's size, so that its log-odds are about what is gained and lost. Each
query is judged by a regression fitted without its cluster. A threshold on these log-odds is chosen to
maximise the mean of what is gained, less the cost of expanding.

A threshold that is chosen on the queries that it is judged by looks better than it is. So all of this is
done again five times, without a fifth of the clusters, which are then decided by it. The learned gate is
kept only if, on these decisions, it is significantly better than the policy without one, by the paired
test of reports. That policy expands every query if this is significantly better than expanding none, by
the same test, and else none: on few queries a gain is soon seen where there is a loss.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from expandr_core.evaluation.significance import paired_p
from expandr_core.options.evaluation import SignificanceOptions
from expandr_core.retrieval.gate import Floats, Policy

MOST_FOLDS = 100  # with more clusters, several are left out together
FIFTHS = 5  # of the clusters, that the learned gate is tested on
_DIGITS = 12  # equal means differ by rounding


class Regression(NamedTuple):
    """A logistic regression of standardised features; with no features, a constant."""

    means: Floats
    scales: Floats
    coefficients: Floats
    intercept: float

    def scores(self, features: Floats) -> Floats:
        """Return the log-odds; (queries,)."""
        return ((features - self.means) / self.scales) @ self.coefficients + self.intercept


@dataclass(frozen=True)
class Fitted:
    """A gate that is fitted, and what it reached on dev.

    Attributes:
        policy: see `Gate`.
        regression: fitted to all queries.
        threshold: least log-odds that a query is expanded at; as chosen on all queries.
        scores: (queries,) log-odds by regressions without the query's cluster.
        expanded: (queries,) whether a query is expanded by a gate that is fitted without its cluster.
        learned: mean gain over expanding none, less the cost, of the learned gate, decided like this.
        constant: the same of the policy without it.
        p: of the paired test of the two.
    """

    policy: Policy
    regression: Regression
    threshold: float
    scores: Floats
    expanded: NDArray[np.bool_]
    learned: float
    constant: float
    p: float


def best_weight(scores: dict[float, Floats]) -> float:
    """Return the weight with the highest mean score; of equal ones, the smallest.

    Args:
        scores: (queries,) of each query, by weight.

    >>> best_weight({0.2: np.array([0.1, 0.5]), 0.0: np.array([0.3, 0.1]), 0.1: np.array([0.5, 0.1])})
    0.1
    """
    means = {weight: round(float(scores[weight].mean()), _DIGITS) for weight in sorted(scores)}
    return max(means, key=lambda weight: means[weight])  # of equal ones, the first


def best_threshold(scores: Floats, gains: Floats, cost: float) -> float:
    """Return the least score that a query is expanded at, to maximise the sum of gain - cost.

    It lies halfway between two scores; inf expands none, -inf all. Of equally good ones, the highest.

    Args:
        scores: (queries,)
        gains: (queries,)
        cost: of expanding a query.

    The query with 0.9 gains more than it costs, the one with 0.5 as much as it costs:

    >>> best_threshold(np.array([0.5, 0.1, 0.9]), np.array([0.25, -0.5, 0.5]), 0.25)
    0.7
    >>> best_threshold(np.array([1.0, 1.0]), np.array([0.5, -0.2]), 0.0)
    -inf
    """
    if not len(scores):
        return np.inf
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    totals = np.round(np.cumsum(gains[order] - cost), _DIGITS)
    ends = np.flatnonzero(np.r_[ranked[1:] < ranked[:-1], True])  # the last of equal scores
    best = int(np.argmax(np.r_[0.0, totals[ends]]))
    if best == 0:
        return np.inf
    end = ends[best - 1]
    if end == len(ranked) - 1:
        return -np.inf
    halfway = (ranked[end] + ranked[end + 1]) / 2
    return float(halfway if halfway > ranked[end + 1] else ranked[end])  # no number may be between


def fit_gate(
    features: Floats, gains: Floats, clusters: NDArray[np.int64], cost: float,
    significance: SignificanceOptions, seed: int,
) -> Fitted:  # fmt: skip
    """Fit a gate, and keep it only if it is better than none; see above.

    Args:
        features: (queries, features)
        gains: (queries,) nDCG@10 with the expansion, less without.
        clusters: (queries,) number of the query's cluster.
        cost: gain that expanding a query must bring.
        significance: how the gate is tested.
        seed: of the test.
    """
    scores = out_of_fold(features, gains, clusters)
    expanded = np.zeros(len(gains), np.bool_)
    for fifth in range(FIFTHS):
        own = clusters % FIFTHS == fifth
        others = features[~own], gains[~own]
        threshold = best_threshold(out_of_fold(*others, clusters[~own]), others[1], cost)
        expanded[own] = regress(*others).scores(features[own]) >= threshold
    net = gains - cost
    always, _ = _is_gain(net, clusters, significance, seed)
    constant = net if always else np.zeros(len(net))
    kept, p = _is_gain(expanded * net - constant, clusters, significance, seed)
    threshold = best_threshold(scores, gains, cost)
    policy: Policy = "always" if always else "never"
    return Fitted(
        "learned" if kept and np.isfinite(threshold) else policy,
        regress(features, gains),
        threshold,
        scores,
        expanded,
        float((expanded * net).mean()),
        float(constant.mean()),
        p,
    )


def _is_gain(
    differences: Floats, clusters: NDArray[np.int64], significance: SignificanceOptions, seed: int
) -> tuple[bool, float]:
    """Tell whether the mean of the clusters' differences is significantly above 0; return p too."""
    by_cluster = np.bincount(clusters, weights=differences) / np.bincount(clusters)
    p = paired_p(by_cluster, significance.test, seed)
    return bool(by_cluster.mean() > 0 and p < significance.significance_level), p


def out_of_fold(features: Floats, gains: Floats, clusters: NDArray[np.int64]) -> Floats:
    """Return each query's log-odds by a regression that is fitted without its cluster; (queries,)."""
    folds, scores = clusters % MOST_FOLDS, np.zeros(len(gains))
    for fold in np.unique(folds):
        own = folds == fold
        scores[own] = regress(features[~own], gains[~own]).scores(features[own])
    return scores


def regress(features: Floats, gains: Floats) -> Regression:
    """Fit a logistic regression of the gains' signs, weighted by their sizes.

    Queries without gain or loss tell nothing, and weigh nothing. If all others gain, or all lose, or
    there are none, the log-odds are 1, -1 or 0 for every query.

    Args:
        features: (queries, features)
        gains: (queries,)
    """
    from sklearn.linear_model import LogisticRegression

    size = features.shape[1]
    means = features.mean(axis=0) if len(features) else np.zeros(size)
    spread = features.std(axis=0) if len(features) else np.zeros(size)
    scales = np.where(spread > 1e-9 * np.maximum(1, np.abs(means)), spread, 1.0)
    told = gains != 0
    signs = np.sign(gains[told])
    if len(np.unique(signs)) < 2:
        return Regression(means, scales, np.zeros(size), float(signs[0]) if len(signs) else 0.0)
    weights = np.abs(gains[told])
    # scipy's L-BFGS-B waits for threads of BLAS at every step (scipy 22438)
    model = LogisticRegression(solver="newton-cg", tol=1e-8, max_iter=1000)
    model.fit((features[told] - means) / scales, signs, sample_weight=weights / weights.mean())
    coefficients, intercept = np.ravel(model.coef_), np.ravel(model.intercept_)
    return Regression(means, scales, coefficients, float(intercept[0]))
