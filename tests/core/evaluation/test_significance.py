"""Paired tests: joined by id, averaged by cluster, corrected by Holm."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from expandr_core.errors import DataError
from expandr_core.evaluation.render import format_p
from expandr_core.evaluation.significance import compare_queries, fewest_to_tell, holm, paired_p


def scores(values: dict[str, float], clusters: dict[str, str] | None = None) -> pa.Table:
    ids = list(values)
    return pa.table(
        {
            "query_id": ids,
            "cluster": [(clusters or {}).get(query_id, query_id) for query_id in ids],
            "ndcg_at_10": [values[query_id] for query_id in ids],
        }
    )


def compare(before: pa.Table, after: pa.Table, test="t", seed=0):
    return compare_queries(before, after, "ndcg_at_10", test, seed)


def test_queries_are_joined_by_id_whatever_their_order():
    before = scores({"a": 0.1, "b": 0.2, "c": 0.3})
    after = scores({"c": 0.3, "b": 0.6, "a": 0.4})
    found = compare(before, after)
    assert found.difference == pytest.approx((0.3 + 0.4 + 0.0) / 3)
    assert (found.wins, found.losses, found.queries, found.clusters) == (2, 0, 3, 3)


@pytest.mark.parametrize(
    "after",
    [{"a": 0.5}, {"a": 0.5, "b": 0.5, "c": 0.5}, {"a": 0.5, "c": 0.5}],
    ids=["missing", "additional", "other"],
)
def test_systems_with_other_queries_are_refused(after):
    with pytest.raises(DataError, match="same queries"):
        compare(scores({"a": 0.1, "b": 0.2}), scores(after))


def test_a_query_in_another_cluster_is_refused():
    before = scores({"a": 0.1, "b": 0.2}, {"a": "x"})
    with pytest.raises(DataError, match="query 'a' is in cluster 'x' before, 'a' after"):
        compare(before, scores({"a": 0.1, "b": 0.2}))


def test_a_cluster_is_one_observation():
    clusters = {f"q{n}": f"c{max(n, 1)}" for n in range(11)}
    before = scores(dict.fromkeys(clusters, 0.0), clusters)
    after = scores({"q0": 0.2, "q1": 0.0} | {f"q{n}": n / 10 for n in range(2, 11)}, clusters)
    found = compare(before, after)
    assert (found.clusters, found.queries) == (10, 11)
    # differences .1, .2, ..., 1: mean .55, standard error .30277/sqrt(10), so t = 5.745, 9 degrees
    assert found.difference == pytest.approx(0.55)
    assert found.p == pytest.approx(2.78e-4, abs=1e-6)


@pytest.mark.parametrize("test", ["t", "randomisation"])
def test_nothing_is_concluded_from_equal_systems_or_one_cluster(test):
    same = scores({"a": 0.1, "b": 0.2})
    assert compare(same, same, test).p == 1
    together = {"a": "x", "b": "x"}
    one = compare(scores({"a": 0, "b": 0}, together), scores({"a": 1, "b": 1}, together), test)
    assert (one.p, one.clusters) == (1, 1)


def test_few_observations_are_exchanged_in_all_ways():
    # 2^4 ways to choose the signs of (.1, .2, .3, .4): a sum of at least 1 or at most -1 in two
    assert paired_p(np.array([0.1, 0.2, 0.3, 0.4]), "randomisation", 0) == pytest.approx(2 / 16)


@pytest.mark.parametrize("test", ["t", "randomisation"])
@pytest.mark.parametrize(
    ("differences", "p"),
    [([0.5, 0.5], 0.5), ([0.1, 0.1, 0.1], 0.25), ([0.6 - 0.5, 0.3 - 0.2, 0.1], 0.25)],
    ids=["two", "three", "three that are equal but for rounding"],
)
def test_equal_differences_of_few_are_no_evidence(differences, p, test):
    assert paired_p(np.array(differences), test, 0) == p


@pytest.mark.parametrize("test", ["t", "randomisation"])
def test_the_rounding_of_sums_is_no_difference(test):
    assert paired_p(np.full(20, 0.1 + 0.2 - 0.3), test, seed=0) == 1.0
    assert paired_p(np.arange(1, 13) * 2.0**-56, test, seed=0) == 1.0


def test_the_t_test_is_for_enough_observations_that_differ():
    spread = np.arange(1, 10) / 10
    assert paired_p(spread, "t", 0) == paired_p(spread, "randomisation", 0) == 2 / 2**9
    assert paired_p(np.arange(1, 11) / 10, "t", 0) == pytest.approx(2.78e-4, abs=1e-6)
    equal = np.full(40, 0.3) + np.arange(40) * 1e-17
    assert paired_p(equal, "t", 0) == pytest.approx(2 / 10_000)


def test_a_score_or_p_that_is_not_a_number_is_never_evidence():
    nan = float("nan")
    with pytest.raises(DataError, match=r"query 'b': its ndcg_at_10 is not a number \(0.2, nan\)"):
        compare(scores({"a": 0.1, "b": 0.2}), scores({"a": 0.1, "b": nan}))
    assert holm([nan, 0.01, 0.04]) == pytest.approx([1, 0.03, 0.08])
    assert format_p(nan) == "not known"


def test_fewer_observations_than_are_needed_cannot_be_significant():
    assert fewest_to_tell(0.05, "t") == fewest_to_tell(0.05, "randomisation") == 6
    assert paired_p(np.full(6, 0.1), "t", 0) < 0.05 < paired_p(np.full(5, 0.1), "t", 0)


def test_a_t_test_tells_at_a_level_that_as_many_exchanges_cannot_reach():
    clear = np.linspace(0.3, 0.31, 10)
    assert paired_p(clear, "t", 0) < 0.001 < paired_p(clear, "randomisation", 0)
    assert (fewest_to_tell(0.001, "t"), fewest_to_tell(0.001, "randomisation")) == (10, 11)


def test_many_observations_are_exchanged_at_random_by_the_seed():
    differences = np.random.default_rng(0).normal(0.05, 1, 3000)
    first, again, other = (paired_p(differences, "randomisation", seed) for seed in (1, 1, 2))
    assert first == again
    assert first == pytest.approx(other, abs=0.02)
    assert first == pytest.approx(paired_p(differences, "t", 0), abs=0.02)
    assert paired_p(differences + 1, "randomisation", 1) == pytest.approx(2 / 10_000)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=8),
    st.sampled_from(["t", "randomisation"]),
)
def test_exchanging_the_systems_reverses_the_sign_only(pairs, test):
    before = scores({f"q{n}": b / 10 for n, (b, _) in enumerate(pairs)})
    after = scores({f"q{n}": a / 10 for n, (_, a) in enumerate(pairs)})
    there, back = compare(before, after, test), compare(after, before, test)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p == pytest.approx(back.p)
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert 0 <= there.p <= 1


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.8]) == [1, 1]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.02, 1.0]), min_size=1, max_size=40))
def test_holm_is_that_of_statsmodels_to_the_bit(p_values):
    assert holm(p_values) == multipletests(p_values, method="holm")[1].tolist()
