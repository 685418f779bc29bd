"""Training the retriever: nothing is mined that no example needs."""

from pathlib import Path

import pytest

from expandr_core.options.loop import JointLoopOptions
from expandr_core.stages.prepare import WITHOUT_NEGATIVES
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from tasks.dry_run import StepCount
from tasks.retriever import train_retriever


@pytest.mark.parametrize(
    ("counts", "mined"),
    [({WITHOUT_NEGATIVES: 0}, False), ({WITHOUT_NEGATIVES: 3}, True), ({}, True), (None, True)],
)
def test_negatives_are_mined_only_if_an_example_may_lack_its_own(tmp_path: Path, counts, mined):
    store = Store(str(tmp_path / "store"))
    examples = Artifact(key="prepare-0123456789abcdef0123", digest="0", path="retriever.parquet")
    if counts is not None:
        folder = tmp_path / "prepared"
        folder.mkdir()
        (folder / "retriever.parquet").write_bytes(b"rows")
        store.commit(examples.key, folder, [], {"counts": counts})
    other = Artifact(key="corpus-0123456789abcdef0123", digest="1")
    pipeline = StepCount(store.url, JointLoopOptions())
    train_retriever(pipeline, examples, other, None, other, other)
    made = ["encode", "mine"] if mined else []
    assert [step.id.stage for step in pipeline.steps] == [*made, "train_retriever"]
