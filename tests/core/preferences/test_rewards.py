"""Ranks, rewards and the choice of a pair: by hand, and whatever the order of the candidates."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from candidates import judged
from hypothesis import given
from hypothesis import strategies as st

from expandr_core.preferences import rewards
from expandr_core.preferences.pairs import choose_pair
from expandr_core.preferences.rewards import Scores, ranks, tie_seed

FOUR = [(0.9, 0.1), (0.5, 0.8), (0.3, 0.3), (0.1, 0.6)]
similarities = st.lists(
    st.tuples(*[st.integers(-4, 4).map(lambda n: n / 4)] * 2), min_size=2, max_size=8
)


def paired(rows: list[dict[str, Any]]) -> tuple[str, str, float]:
    pair = choose_pair(rows)
    return pair["chosen_text"], pair["rejected_text"], pair["margin"]


def test_four_candidates_by_hand():
    to_positive, to_answer = np.array(FOUR).T
    assert ranks(to_positive).tolist() == [1, 2, 3, 4]
    assert ranks(to_answer).tolist() == [4, 1, 3, 2]
    rows = judged(FOUR)
    assert [row["reward"] for row in rows] == pytest.approx([1.25, 1.5, 2 / 3, 0.75])
    assert [row["similarity"] for row in rows] == pytest.approx([1, 1.3, 0.6, 0.7])
    assert paired(rows) == ("text 1", "text 2", pytest.approx(1.5 - 2 / 3))
    assert choose_pair(rows)["best_similarity"] == pytest.approx(1.3)


def test_equal_similarities_share_the_better_rank():
    assert ranks(np.array([0.5, 0.9, 0.5, 0.1, 0.5])).tolist() == [2, 1, 2, 5, 2]


def test_two_that_differ_by_rounding_alone_have_no_margin_whatever_stands_between():
    steps = np.array([0.5, 0.5 + 0.6e-3, 0.5 + 1.2e-3])
    assert ranks(steps, 1e-3).tolist() == [2, 1, 1]
    both = list(zip(steps, steps, strict=True))
    assert paired(judged(both, rounding=1e-3))[2] == 1  # the first and the last
    close = steps[:2]
    opposite = list(zip(close, close[::-1], strict=True))
    assert paired(judged(opposite, rounding=1e-3))[2] == 0
    uneven = list(zip(close, (0.1, 0.9), strict=True))
    assert paired(judged(uneven, rounding=1e-3))[2] == pytest.approx(0.5)


def test_a_margin_of_ranks_is_none_if_no_similarity_tells_the_pair_apart():
    """C stands between A and B in one similarity, D in the other, so the ranks alone differ."""
    steps = [(0.0, 0.0), (0.6, 0.6), (1.2, -9.0), (-9.0, 1.2)]
    rows = judged(steps, rounding=1.0)
    assert [row["reward"] for row in rows] == [1.0, 2.0, 1.25, 1.25]
    assert [row["apart"] for row in rows] == [False, False, True, True]
    assert choose_pair(rows)["margin"] == 0


def test_equal_rewards_go_to_the_larger_summed_similarity():
    # both have reward 1 + 1/2, and 0.9 + 0.3 < 0.5 + 0.8
    rows = judged([(0.9, 0.3), (0.5, 0.8), (0.1, 0.1)], ties=[9, 0, 0])
    assert paired(rows)[0] == "text 1"


def test_what_is_equal_altogether_is_decided_by_the_seed_of_the_text():
    equal = [(0.5, 0.5)] * 2
    assert paired(judged(equal, ties=[1, 2])) == ("text 1", "text 0", 0)
    assert paired(judged(equal, ties=[2, 1])) == ("text 0", "text 1", 0)


def test_the_seed_of_a_tie_belongs_to_the_text_the_query_and_the_run():
    seeds = {tie_seed(run, query, text) for run in (0, 1) for query in "ab" for text in "cd"}
    assert len(seeds) == 8
    assert tie_seed(0, "a", "c") == tie_seed(0, "a", "c")


@given(similarities, st.randoms(use_true_random=False))
def test_the_pair_does_not_depend_on_the_order_of_the_candidates(both, random):
    def pair_of(order: list[int]) -> tuple[str, str, float]:
        texts = [f"text {k}" for k in order]
        ties = [tie_seed(0, "q", text) for text in texts]
        chosen, rejected, margin = paired(judged([both[k] for k in order], ties, texts=texts))
        assert chosen != rejected and margin >= 0
        return chosen, rejected, margin

    shuffled = random.sample(range(len(both)), len(both))
    assert pair_of(shuffled) == pair_of(list(range(len(both))))


@given(similarities)
def test_rewards_lie_between_two_nths_and_two(both):
    assert all(2 / len(both) - 1e-12 <= row["reward"] <= 2 for row in judged(both))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40, unique=True))
def test_without_ties_the_mean_reward_is_a_constant(values):
    constant = 2 * np.mean([1 / rank for rank in range(1, len(values) + 1)])
    rows = judged(list(zip(values, values[::-1], strict=True)))
    assert np.mean([row["reward"] for row in rows]) == pytest.approx(constant)


def test_a_component_more_is_summed_written_and_decides_the_pair(monkeypatch):
    def later_reward(candidates) -> Scores:
        place = np.arange(len(candidates.vectors), dtype=np.float64)
        return Scores(place, 3 * place)

    monkeypatch.setattr(rewards, "COMPONENTS", (*rewards.COMPONENTS, later_reward))
    rows = judged(FOUR)
    assert [row["later_reward"] for row in rows] == [0, 3, 6, 9]
    assert [row["reward"] for row in rows] == pytest.approx([1.25, 4.5, 6 + 2 / 3, 9.75])
    assert paired(rows)[:2] == ("text 3", "text 0")
    table = pa.Table.from_pylist(rows, rewards.schema())
    assert table["later_similarity"].to_pylist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_similarity_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        ranks(np.array([0.1, bad]))
