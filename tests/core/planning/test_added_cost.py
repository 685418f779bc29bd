"""What each of several runs costs beyond those before it."""

from store_keys import full

from expandr_core.planning.added_cost import AddedCost, added_costs
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store


def put(store: Store, key: str, seconds: float, parts=(), **counts: float) -> Artifact:
    folder = store.scratch / key
    folder.mkdir()
    (folder / "file").write_text(key)
    facts = {"counts": counts, "seconds": seconds}
    return store.commit(full(key), folder, list(parts), facts)


def test_what_is_shared_counts_for_the_first_run_and_a_shard_once(tmp_path):
    store = Store(str(tmp_path))
    shards = [put(store, f"expand_shard-{n}", 2, tokens=10) for n in (1, 2)]
    first = put(store, "expand-1", 0.1, shards[:1], tokens=10)
    both = put(store, "expand-2", 0.1, shards, tokens=20)
    trained = put(store, "dpo-1", 7, tokens=999)  # of the pairs: not written
    gone = Artifact(key=full("pairs-1"), digest="1")
    costs = added_costs(store, {"a": [first, trained, first], "b": [first, both], "c": [gone]})
    assert costs == {
        "a": AddedCost(made=2, artifacts=2, seconds=9, tokens=10),
        "b": AddedCost(made=1, artifacts=2, seconds=2, tokens=10),
        "c": AddedCost(made=1, artifacts=1, seconds=0, tokens=0),
    }
