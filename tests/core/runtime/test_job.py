"""Jobs: sharded inputs are fetched side by side, in order, and let go."""

from collections.abc import Callable

from store_keys import full
from store_world import put

from expandr_core.options.base import Options
from expandr_core.runtime.job import Job, no_progress
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store


def job_with(store: Store, shards: int) -> Job:
    parts = [put(store, f"expand_shard-{n}", {"rows": f"{n}"}) for n in range(shards)]
    whole = put(store, full("expand-1"), {"whole": "w"}, parts)
    spec = StageSpec(stage="pairs", version=1, inputs={"candidates": whole})
    return Job(spec, Options(), {}, store.scratch, store.scratch, store, no_progress)


def removable(store: Store) -> Callable[[Artifact], bool]:
    return lambda shard: store.cache.remove(shard.key)


def test_shards_come_in_their_order_and_are_let_go(remote):
    job = job_with(remote, 20)
    assert [(folder / "rows").read_text() for folder in job.shards("candidates")] == [
        f"{n}" for n in range(20)
    ]
    assert all(map(removable(remote), remote.shards(job.spec.inputs["candidates"])))


def test_who_stops_early_lets_go_of_what_was_fetched_ahead(remote):
    job = job_with(remote, 20)
    folders = job.shards("candidates")
    assert (next(folders) / "rows").read_text() == "0"
    shards = remote.shards(job.spec.inputs["candidates"])
    assert not removable(remote)(shards[0])
    folders.close()
    assert all(map(removable(remote), shards))


def test_all_shards_are_held_until_the_end(remote):
    job = job_with(remote, 20)
    shards = remote.shards(job.spec.inputs["candidates"])
    with job.all_shards("candidates") as folders:
        assert [(folder / "rows").read_text() for folder in folders] == [f"{n}" for n in range(20)]
        assert not any(map(removable(remote), shards))
    assert all(map(removable(remote), shards))
