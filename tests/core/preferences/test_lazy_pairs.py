"""Lazy pairs: the first accepted ones in the order of the shards, and no shard more than asked for."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from candidates import judged
from evaluation_world import make, put
from flat_options import flat
from hypothesis import given
from hypothesis import strategies as st

from expandr_core.errors import DataError
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.preferences import rewards as rewards_module
from expandr_core.preferences.lazy import next_step, shards_with
from expandr_core.runtime.runner import make_spec
from expandr_core.runtime.shards import query_shards, shard_sizes
from expandr_core.stages import pairs
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

# four shards; a query is accepted if its best candidate's summed similarity reaches 0.6
SHARDS = [
    {"q3": 0.9, "q8": 0.1},
    {"q1": 0.7, "q5": 0.8, "q7": 0.2},
    {"q2": 0.6, "q9": 0.3},
    {"q4": 0.9, "q6": 0.9},
]


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def rewards(store: Store, shards: list[dict[str, float]]) -> Artifact:
    """Make what `reward` writes: two candidates a query, the better one as similar as said."""
    parts = []
    for place, best in enumerate(shards):
        rows = [
            row
            for id_, value in sorted(best.items())
            for row in judged([(value, 0.0), (0.0, 0.0)], query_id=id_)
        ]
        table = pa.Table.from_pylist(rows, rewards_module.schema())
        name = f"reward_shard-{len(store.keys())}-{place}"
        parts.append(put(store, name, {"rewards.parquet": table}))
    return put(store, f"reward-{len(store.keys())}", {}, parts)


def chosen(store: Store, shards: list[dict[str, float]], **options) -> tuple[Artifact, list[str]]:
    """Run the stage; return its artifact and the queries that became pairs."""
    resolved = flat(pairs.OPTIONS, dpo_dev_share=0, **options)
    made, folder = make(store, "pairs", resolved, {"rewards": rewards(store, shards)})
    return made, pq.read_table(folder / "pairs.parquet")["query_id"].to_pylist()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(1, ["q3"]), (2, ["q1", "q3"]), (4, ["q1", "q2", "q3", "q5"]), (9, [f"q{n}" for n in range(1, 7)])],
)  # fmt: skip
def test_lazy_pairs_are_the_first_accepted_in_the_order_of_the_shards(store, wanted, expected):
    made, queries = chosen(store, SHARDS, lazy=True, max_pairs=wanted)
    assert queries == expected
    assert made.counts["accepted"] == 6
    assert made.counts["dropped/over_max_pairs"] == 6 - len(expected)


def test_the_first_shards_alone_bring_the_same_pairs_as_all(store):
    whole, _ = chosen(store, SHARDS, lazy=True, max_pairs=3)
    first, _ = chosen(store, SHARDS[:2], lazy=True, max_pairs=3, partial=True)
    assert first.digest == whole.digest
    assert first.counts["queries"] == 5 < whole.counts["queries"] == 9


def test_no_pair_is_an_error_only_if_no_more_shards_come(store):
    made, queries = chosen(store, [{"q": 0.1}], lazy=True, partial=True)
    assert (queries, made.counts["accepted"]) == ([], 0)
    with pytest.raises(DataError, match="no preference pair is left"):
        chosen(store, [{"q": 0.1}], lazy=True)


def test_lazy_pairs_by_a_quantile_are_refused():
    with pytest.raises(
        ValueError, match=r"lazy pairs need acceptance 'threshold'.*set lazy to fal"
    ):
        PreferenceOptions(lazy=True, acceptance="quantile")


def test_the_number_of_shards_is_in_the_key_only_if_it_is_limited():
    def key(max_shards: int) -> str:
        return make_spec("pairs", pairs.OPTIONS(), max_shards=max_shards).key

    assert key(0) == make_spec("pairs", pairs.OPTIONS()).key
    assert len({key(0), key(1), key(2)}) == 3


@given(st.integers(1, 500), st.data())
def test_the_steps_end_with_enough_pairs_or_all_shards(wanted, data):
    sizes = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=64).filter(any))
    accepted = [data.draw(st.integers(0, size)) for size in sizes]
    done = shards_with(wanted, sizes)
    assert sum(sizes[: done - 1]) < wanted  # fewer shards could not hold the pairs
    assert sum(sizes[:done]) > 0
    while done < len(sizes) and sum(accepted[:done]) < wanted:
        more = next_step(wanted, sum(accepted[:done]), done, sizes)
        assert done < more <= len(sizes)
        done = more


def test_shards_have_the_sizes_that_are_told_before_they_are_cut(tmp_path):
    path = tmp_path / "queries.parquet"
    ids = [f"q{number % 90}" for number in range(100)]  # ten of them twice
    pq.write_table(pa.table({"query_id": ids}), path)
    sizes = shard_sizes(path, 16)
    assert (sum(sizes), len(sizes)) == (90, 8)
    cut = {number: len(rows) for number, rows in query_shards(path, 16, [])}
    assert cut == {number: size for number, size in enumerate(sizes) if size}
