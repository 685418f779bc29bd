"""Laws of the split: they hold for all queries, seeds and shares."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expandr_core.data.split import SPLIT_NAMES, Split, normalise, split_of
from expandr_core.errors import DataError

texts = st.text(min_size=1)
shares = st.tuples(st.floats(0.05, 0.5), st.floats(0, 0.45))
seeds = st.integers(0, 5)


@given(st.lists(texts, unique=True), seeds, shares)
def test_every_query_is_in_exactly_one_split(
    queries: list[str], seed: int, share: tuple[float, float]
) -> None:
    split = Split(seed, *share)
    splits = {name: {normalise(q) for q in queries if split.of(q) == name} for name in SPLIT_NAMES}
    assert set.union(*splits.values()) == {normalise(query) for query in queries}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values()))


@given(st.lists(texts, min_size=1), texts, seeds, shares, st.randoms())
def test_neither_order_nor_other_queries_matter(
    queries: list[str], other: str, seed: int, share: tuple[float, float], random
) -> None:
    split = Split(seed, *share)
    splits = {query: split.of(query) for query in queries}
    again = Split(seed, *share)
    again.of(other)
    random.shuffle(queries)
    assert {query: again.of(query) for query in queries} == splits


@given(texts, seeds, shares)
def test_spellings_of_one_query_share_a_split(
    query: str, seed: int, share: tuple[float, float]
) -> None:
    split = Split(seed, *share)
    assert split.of(f"  {query}\t\n") == split.of(query) == split.of(normalise(query))


@given(texts)
def test_normalising_again_changes_nothing(query: str) -> None:
    assert normalise(normalise(query)) == normalise(query)


@given(texts, seeds, shares)
def test_without_a_dev_share_only_dev_queries_move(
    query: str, seed: int, share: tuple[float, float]
) -> None:
    with_dev = split_of(query, seed, *share)
    without = split_of(query, seed, share[0], 0)
    assert without == ("retriever" if with_dev == "dev" else with_dev)


def test_the_splits_have_the_shares_asked_for() -> None:
    counts = Counter(split_of(f"query {n}", 0, 0.3, 0.2) for n in range(20_000))
    assert counts["preference"] == pytest.approx(6000, abs=300)  # 4.6 standard deviations
    assert counts["dev"] == pytest.approx(4000, abs=260)
    assert counts["retriever"] == pytest.approx(10_000, abs=330)


def test_another_seed_gives_another_split() -> None:
    queries = [f"query {n}" for n in range(1000)]
    same = sum(split_of(q, 0, 0.5, 0) == split_of(q, 1, 0.5, 0) for q in queries)
    assert 400 < same < 600


def test_a_held_out_query_is_in_no_split_in_any_spelling() -> None:
    split = Split(0, 0.5, 0.1, held_out={"why do wings lift?"})
    assert split.of("Why do  WINGS lift?") is None
    assert split.of("Why do wings lift") is not None
    assert split.leaked == {"why do wings lift?"}


def test_shares_that_leave_nothing_to_the_retriever_are_refused() -> None:
    with pytest.raises(DataError, match="leave nothing to the retriever"):
        Split(0, 0.9, 0.1)


@pytest.mark.parametrize(
    ("empty", "option"),
    [
        ("preference", "data.preference_share"),
        ("retriever", "data.preference_share"),
        ("dev", "data.dev_share"),
    ],
)
def test_a_split_without_queries_is_refused(empty: str, option: str) -> None:
    queries = {name: 0 if name == empty else 7 for name in SPLIT_NAMES}
    with pytest.raises(DataError, match=f"no query is left in the {empty} split.*change {option}"):
        Split(0, 0.5, 0.1).require(queries)


def test_the_dev_split_may_be_empty_if_its_share_is_0() -> None:
    Split(0, 0.5, 0).require({"preference": 1, "retriever": 1, "dev": 0})
