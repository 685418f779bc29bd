"""Ranks, rewards and the choice of a pair: by hand, and whatever the order of the candidates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expandr_core.preferences.rewards import choose_pair, ranks, rewards, tie_seed

TO_POSITIVE = np.array([0.9, 0.5, 0.3, 0.1], dtype=np.float32)
TO_ANSWER = np.array([0.1, 0.8, 0.3, 0.6], dtype=np.float32)
similarities = st.lists(
    st.tuples(*[st.integers(-4, 4).map(lambda n: n / 4)] * 2), min_size=2, max_size=8
)


def test_four_candidates_by_hand():
    assert ranks(TO_POSITIVE).tolist() == [1, 2, 3, 4]
    assert ranks(TO_ANSWER).tolist() == [4, 1, 3, 2]
    assert rewards(TO_POSITIVE, TO_ANSWER) == pytest.approx([1.25, 1.5, 2 / 3, 0.75])
    choice = choose_pair(TO_POSITIVE, TO_ANSWER, [0, 1, 2, 3])
    assert choice is not None
    assert (choice.chosen, choice.rejected) == (1, 2)
    assert choice.margin == pytest.approx(1.5 - 2 / 3)


def test_equal_similarities_share_the_better_rank():
    assert ranks(np.array([0.5, 0.9, 0.5, 0.1, 0.5])).tolist() == [2, 1, 2, 5, 2]


def test_two_that_differ_by_rounding_alone_have_no_margin_whatever_stands_between():
    steps = np.array([0.5, 0.5 + 0.6e-3, 0.5 + 1.2e-3])
    assert ranks(steps, 1e-3).tolist() == [2, 1, 1]
    assert choose_pair(steps, steps, [0, 1, 2], 1e-3).margin == 1  # the first and the last
    close = np.array([0.5, 0.5 + 0.6e-3])
    assert choose_pair(close, close[::-1], [0, 1], 1e-3).margin == 0
    uneven = np.array([0.1, 0.9])
    assert choose_pair(close, uneven, [0, 1], 1e-3).margin == pytest.approx(0.5)


def test_equal_rewards_go_to_the_larger_summed_similarity():
    # both have reward 1 + 1/2, and 0.9 + 0.3 < 0.5 + 0.8
    choice = choose_pair(np.array([0.9, 0.5, 0.1]), np.array([0.3, 0.8, 0.1]), [9, 0, 0])
    assert choice is not None and choice.chosen == 1


def test_what_is_equal_altogether_is_decided_by_the_seed_of_the_text():
    equal = np.array([0.5, 0.5])
    assert choose_pair(equal, equal, [1, 2]) != choose_pair(equal, equal, [2, 1])
    assert choose_pair(equal, equal, [1, 2]).chosen == 1
    assert choose_pair(equal, equal, [1, 2]).margin == 0


def test_the_seed_of_a_tie_belongs_to_the_text_the_query_and_the_run():
    seeds = {tie_seed(run, query, text) for run in (0, 1) for query in "ab" for text in "cd"}
    assert len(seeds) == 8
    assert tie_seed(0, "a", "c") == tie_seed(0, "a", "c")


@given(similarities, st.randoms(use_true_random=False))
def test_the_pair_does_not_depend_on_the_order_of_the_candidates(rows, random):
    texts = [f"text {number}" for number in range(len(rows))]

    def chosen_texts(order: list[int]) -> tuple:
        to_positive, to_answer = (np.array([rows[k][side] for k in order]) for side in (0, 1))
        seeds = [tie_seed(0, "q", texts[k]) for k in order]
        choice = choose_pair(to_positive, to_answer, seeds)
        assert choice is not None and choice.chosen != choice.rejected and choice.margin >= 0
        return texts[order[choice.chosen]], texts[order[choice.rejected]], choice.margin

    shuffled = random.sample(range(len(rows)), len(rows))
    assert chosen_texts(shuffled) == chosen_texts(list(range(len(rows))))


@given(similarities)
def test_rewards_lie_between_two_nths_and_two(rows):
    reward = rewards(*(np.array([row[side] for row in rows]) for side in (0, 1)))
    assert (reward >= 2 / len(rows) - 1e-12).all() and (reward <= 2).all()


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40, unique=True))
def test_without_ties_the_mean_reward_is_a_constant(values):
    constant = 2 * np.mean([1 / rank for rank in range(1, len(values) + 1)])
    assert rewards(np.array(values), np.array(values)[::-1]).mean() == pytest.approx(constant)


def test_one_candidate_makes_no_pair():
    assert choose_pair(np.array([0.5]), np.array([0.5]), [0]) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_similarity_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        ranks(np.array([0.1, bad]))
