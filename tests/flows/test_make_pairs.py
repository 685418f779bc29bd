"""Pairs of the first shards under Prefect: those of a full run, with less written, and resumed."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
from pairs_world import QUERIES, filled, options, pairs_of
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from expandr_core.errors import DataError
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import Step
from expandr_core.store.store import MANIFEST, Store
from tasks.placement import Placement

pytestmark = pytest.mark.usefixtures("prefect_server")
HERE = Placement()
WANTED = 12


class Full(NamedTuple):
    """A run without `lazy`: its store, and its artifacts by stage and name."""

    store: Store
    made: dict[tuple[str, str], Artifact]


@pytest.fixture(scope="module")
def full(prefect_server, llm_folder, tmp_path_factory) -> Full:
    store = filled(tmp_path_factory.mktemp("full") / "store", llm_folder)
    steps = pairs_of(store.url, options(max_pairs=1000), HERE)
    return Full(store, {(step.id.stage, step.id.name): step.artifact for step in steps})


def rows(store: Store, pairs: Artifact) -> list[dict]:
    return pq.read_table(store.local(pairs) / "pairs.parquet").to_pylist()


def made_by(steps: list[Step], stage: str, name: str = "") -> list[Artifact]:
    return [step.artifact for step in steps if (step.id.stage, step.id.name) == (stage, name)]


def in_shard_order(full: Full) -> list[dict]:
    """Return all accepted pairs in the order of the shards, and of the ids in a shard."""
    pair_of = {row["query_id"]: row for row in rows(full.store, full.made["pairs", ""])}
    shards = full.store.shards(full.made["reward", ""])
    tables = [pq.read_table(full.store.local(part) / "rewards.parquet") for part in shards]
    order = [id_ for table in tables for id_ in sorted(set(table["query_id"].to_pylist()))]
    return [pair_of[id_] for id_ in order if id_ in pair_of]


def test_lazy_pairs_are_the_full_run_s_first_ones_and_the_rest_is_not_written(
    full, llm_folder, tmp_path
):
    accepted = in_shard_order(full)
    assert WANTED < len(accepted) < QUERIES
    store = filled(tmp_path / "store", llm_folder)
    steps = pairs_of(store.url, options(lazy=True), HERE)
    assert rows(store, made_by(steps, "pairs")[-1]) == sorted(
        accepted[:WANTED], key=lambda row: row["query_id"]
    )

    candidates = made_by(steps, "expand", "candidates")
    written = {part.key for part in store.shards(candidates[-1])}
    everything = full.store.shards(full.made["expand", "candidates"])
    assert written == {part.key for part in everything[: len(written)]}
    assert len(candidates) > 1 and len(written) < len(everything)
    left = sum(part.counts["queries"] for part in everything[len(written) :])
    assert candidates[-1].counts["left_out/queries"] == left > 0
    assert candidates[-1].counts["left_out/texts"] == 4 * left
    assert [made.counts["accepted"] >= WANTED for made in made_by(steps, "pairs")] == [
        *[False] * (len(candidates) - 1),
        True,
    ]


def test_the_last_step_can_be_all_shards_and_is_then_the_full_run(full):
    steps = pairs_of(full.store.url, options(lazy=True, max_pairs=1000), HERE)
    made = [(step.id.stage, step.id.name, step.artifact.digest) for step in steps]
    assert made == [(*which, artifact.digest) for which, artifact in full.made.items()]


def test_too_few_pairs_stop_the_run_after_an_audit_that_is_shown(full):
    few = options(max_pairs=1000, minimum_pairs=1000)
    with pytest.raises(DataError, match="pairs and at least 1000 are needed") as error:
        pairs_of(full.store.url, few, HERE)
    audit = full.made["audit_pairs", ""]
    assert audit.key in str(error.value)
    with get_client(sync_client=True) as client:
        filters = ArtifactFilter(key=ArtifactFilterKey(any_=["pairs-audit"]))
        newest = client.read_artifacts(artifact_filter=filters, sort=ArtifactSort.CREATED_DESC)
    assert newest[0].data == (full.store.local(audit) / "pair_audit.md").read_text()


def test_a_lost_shard_is_made_again_and_nothing_else(llm_folder, tmp_path):
    store = filled(tmp_path / "store", llm_folder)
    steps = pairs_of(store.url, options(lazy=True), HERE)
    lost = [step.artifact.key for step in steps if step.id.max_shards]
    lost += [store.shards(steps[0].artifact)[0].key]
    before = times(store)
    for key in lost:
        shutil.rmtree(Path(store.root, "artifacts", key))
    assert pairs_of(store.url, options(lazy=True), HERE) == steps
    after = times(store)
    assert {key for key in after if after[key] != before[key]} == set(lost)


def times(store: Store) -> dict[str, int]:
    found = Path(store.root).glob(f"artifacts/*/{MANIFEST}")
    return {path.parent.name: path.stat().st_mtime_ns for path in found}
