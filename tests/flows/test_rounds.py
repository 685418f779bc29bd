"""The rounds of the loop as a list of steps, for every kind of data."""

import pyarrow as pa
import pyarrow.parquet as pq
from prefect.logging import disable_run_logger
from store_keys import full

from expandr_core.options.loop import JointLoopOptions, LoopOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from flows.joint_loop import run_rounds
from tasks.data import Data, Evaluation
from tasks.dry_run import StepCount
from tasks.models import Models


def made(name: str) -> Artifact:
    return Artifact(key=name, digest=name)


def steps_of(tmp_path, splits: tuple[str, ...]) -> list[str]:
    """Return the names of the steps `evaluate`, of two rounds on data with some splits."""
    each = {
        split: Evaluation(made(f"{split}-queries"), made(f"{split}-qrels"), made("corpus"))
        for split in splits
    }
    store = Store(str(tmp_path / "-".join(splits)))
    folder = store.scratch / "queries"
    folder.mkdir()
    pq.write_table(pa.table({"query_id": ["q1", "q2"]}), folder / "preference.parquet")
    queries = store.commit(full("prepare-1"), folder, [], {"counts": {}}).at("preference.parquet")
    data = Data(None, made("corpus"), made("corpus"), queries, made("others"), each)
    options = JointLoopOptions(loop=LoopOptions(rounds=2))
    pipeline = StepCount(store.url, options)
    with disable_run_logger():
        run_rounds(pipeline, data, Models(0, made("llm"), made("retriever")))
    return [step.id.name for step in pipeline.steps if step.id.stage == "evaluate"]


def test_data_without_a_test_split_is_reported_on_dev(tmp_path):
    with_test = steps_of(tmp_path, ("dev", "test"))
    without = steps_of(tmp_path, ("dev",))
    measured = [name for name in with_test if name != "test/learned/0"]  # unseen by the gate
    assert len(set(without)) == len(without) == len(measured) == len(with_test) - 1
    assert [name for name in without if name.startswith("dev/round-2")]
