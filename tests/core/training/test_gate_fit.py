"""The weight and the gate that are learned: by hand where it is small, and without fooling itself."""

import numpy as np
import pytest

from expandr_core.options.evaluation import SignificanceOptions
from expandr_core.options.gate import GateOptions
from expandr_core.stages.gate import gate_of
from expandr_core.training.gate_fit import (
    best_threshold,
    best_weight,
    fit_gate,
    regress,
)

T = SignificanceOptions()


def test_the_weight_with_the_best_mean_is_chosen_and_of_equal_ones_the_smallest():
    scores = {0.0: [0.2, 0.4], 0.1: [0.1, 0.6], 0.2: [0.6, 0.1], 0.3: [0.2, 0.45]}
    arrays = {weight: np.array(values) for weight, values in scores.items()}
    assert best_weight(arrays) == 0.1
    assert best_weight(dict(reversed(arrays.items()))) == 0.1
    assert best_weight({0.0: np.array([0.3]), 0.5: np.array([0.1 + 0.2])}) == 0.0  # by rounding


def test_the_threshold_is_that_of_a_search_over_all():
    random = np.random.default_rng(0)
    for _ in range(50):
        scores, gains = random.integers(0, 6, 12) / 4, random.normal(size=12)
        cost = float(random.choice([0, 0.3]))
        found = best_threshold(scores, gains, cost)
        net = {t: float((gains - cost)[scores >= t].sum()) for t in [*np.unique(scores), np.inf]}
        assert (gains - cost)[scores >= found].sum() == pytest.approx(max(net.values()))


def test_of_equally_good_thresholds_the_one_that_expands_least_is_taken():
    assert best_threshold(np.array([3.0, 2.0, 1.0]), np.array([0.5, 0.0, 0.0]), 0.0) == 2.5
    assert best_threshold(np.array([1.0, 1.0]), np.array([0.0, 0.0]), 0.0) == np.inf


def test_no_number_between_two_scores_moves_the_threshold_to_the_lower():
    higher, lower = np.nextafter(1, 2), 1.0
    assert best_threshold(np.array([lower, higher]), np.array([-0.5, 0.5]), 0.0) == higher


def world(queries: int, told: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries in clusters of three, of which a feature tells or does not tell who gains."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(queries, 3))
    gains = np.sign(features[:, 0] + random.normal(size=queries) / 2) * random.random(queries)
    gains[random.random(queries) < 0.3] = 0
    shown = features if told else random.permutation(features)
    return shown, gains, np.arange(queries) // 3


def test_a_gate_that_can_tell_is_kept_and_expands_who_gains():
    features, gains, clusters = world(150, told=True)
    fitted = fit_gate(features, gains, clusters, 0.0, T, seed=0)
    assert fitted.policy == "learned"
    assert fitted.learned > fitted.constant + 0.05 and fitted.p < 0.05
    expands = fitted.regression.scores(features) >= fitted.threshold
    assert gains[expands].mean() > 0.2 > 0 > gains[~expands].mean()


@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e-3, 1, 1e6])
def test_a_written_gate_decides_as_the_fitted_one_whatever_the_scale_of_its_features(scale):
    features, gains, clusters = world(150, told=True)
    features = scale * (1 + features)
    fitted = fit_gate(features, gains, clusters, 0.0, T, seed=0)
    gate = gate_of(GateOptions(), 0.5, 0.5, fitted, {})
    assert fitted.policy == gate.policy == "learned"
    expands = fitted.regression.scores(features) >= fitted.threshold
    assert gate.expands(features).tolist() == expands.tolist()


def test_shuffled_features_gain_nothing():
    kept, more = 0, []
    for seed in range(10):
        features, gains, clusters = world(45, told=False, seed=seed)
        fitted = fit_gate(features, gains, clusters, 0.0, T, seed=0)
        kept += fitted.policy == "learned"
        more.append(fitted.learned - fitted.constant)
    assert kept <= 1  # by chance, at a level of 0.05
    assert np.mean(more) < 0.005


def test_a_query_is_not_judged_by_what_its_cluster_gained():
    features, gains, clusters = world(60, told=True)
    fitted = fit_gate(features, gains, clusters, 0.0, T, seed=0)
    other = np.where(clusters == 7, -3 * gains - 1, gains)
    again = fit_gate(features, other, clusters, 0.0, T, seed=0)
    own = clusters == 7
    assert np.array_equal(again.scores[own], fitted.scores[own])
    assert np.array_equal(again.expanded[own], fitted.expanded[own])
    assert not np.array_equal(again.scores[~own], fitted.scores[~own])


def test_a_constant_policy_is_the_better_of_the_two_given_the_cost():
    features = np.random.default_rng(0).normal(size=(12, 3))
    clusters = np.arange(12)
    for gain, cost, policy in [
        (0.5, 0.0, "always"),
        (-0.5, 0.0, "never"),
        (0.0, 0.0, "never"),
        (0.01, 0.02, "never"),
        (0.03, 0.02, "always"),
    ]:
        fitted = fit_gate(features, np.full(12, gain), clusters, cost, T, seed=0)
        assert fitted.policy == policy
        assert np.isfinite(fitted.scores).all()


def test_one_dev_query_shows_nothing_so_none_is_expanded():
    for gain in (0.5, -0.5):
        fitted = fit_gate(np.ones((1, 6)), np.array([gain]), np.zeros(1, int), 0.01, T, seed=0)
        assert fitted.policy == "never" and fitted.p == 1


@pytest.mark.parametrize(("times", "policy"), [(4, "never"), (200, "always")])
def test_a_gain_that_may_be_chance_expands_nothing(times, policy):
    """The mean is 0.05 of 16 queries, p = 0.66, and of 800, p = 0.002; the features tell nothing."""
    gains = np.array([0.5, -0.4, 0.5, -0.4] * times)
    fitted = fit_gate(np.ones((len(gains), 3)), gains, np.arange(len(gains)), 0.0, T, seed=0)
    assert fitted.policy == policy


def test_a_feature_without_variance_and_equal_queries_do_no_harm():
    gains = np.array([0.5, -0.5, 0.25, -0.25] * 6)
    features = np.ones((24, 3)) * 0.1
    fitted = fit_gate(features, gains, np.arange(24), 0.0, T, seed=0)
    assert fitted.policy == "never"
    assert np.array_equal(fitted.regression.coefficients, np.zeros(3))
    assert np.array_equal(regress(features, gains).scales, np.ones(3))


def test_more_clusters_than_folds_are_left_out_together():
    features, gains, _ = world(450, told=True)
    fitted = fit_gate(features, gains, np.arange(450), 0.0, T, seed=0)
    assert fitted.policy == "learned" and len(fitted.scores) == 450
