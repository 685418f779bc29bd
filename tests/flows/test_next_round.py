"""Which models a round starts from, after a round that was worse."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import StepId
from expandr_core.store.store import Store
from flows.joint_loop import run_rounds
from tasks.data import Data, Evaluation
from tasks.dry_run import StepCount
from tasks.models import Models

pytestmark = pytest.mark.usefixtures("prefect_server")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Worse(StepCount):
    """A run that makes nothing, and of which no round brings a gain."""

    specs: dict[StepId, StageSpec] = field(default_factory=dict)

    def make(self, step_id: StepId, title: str, spec: StageSpec) -> Artifact:
        self.specs[step_id] = spec
        return super().make(step_id, title, spec)

    def ask(self, question: Callable[[Store], Answer], *, predicted: Answer) -> Answer:
        worse: object = (-1.0, False)
        return worse if predicted == (1.0, True) else predicted  # pyright: ignore


def three_rounds(tmp_path, next_round: str) -> tuple[dict[StepId, StageSpec], Models]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = Store(str(tmp_path / "store"))
    (store.scratch / "data").mkdir(parents=True)
    pq.write_table(pa.table({"query_id": ["q"]}), store.scratch / "data" / "q.parquet")
    made = store.commit("prepare-0123456789abcdef0123", store.scratch / "data", [], {"counts": {}})
    table = made.at("q.parquet")
    split = Evaluation(table, table, table)
    data = Data(None, table, table, table, table, {"dev": split, "test": split})
    base = Models(0, Artifact(key="tiny_llm-1", digest="1"), Artifact(key="r-1", digest="2"))
    loop = {"rounds": 3, "stop_without_gain": False, "next_round": next_round}
    pipeline = Worse(store.url, JointLoopOptions(seed=5, loop=loop))  # pyright: ignore
    found: list[Models] = []

    @flow(name="three-rounds")
    def run() -> None:
        found.append(run_rounds(pipeline, data, base)[0])

    run()
    return pipeline.specs, found[0]


def test_after_a_round_without_gain_the_next_starts_from_the_best_with_another_seed(tmp_path):
    specs, best = three_rounds(tmp_path, "best")
    assert best.round == 0
    trained = [specs[StepId("dpo", number)] for number in (1, 2, 3)]
    assert {spec.inputs["llm"].key for spec in trained} == {"tiny_llm-1"}
    assert [spec.seed for spec in trained] == [5, 6, 7]
    assert {spec.seed for step, spec in specs.items() if step.stage == "evaluate"} == {5}


def test_the_latest_models_are_gone_on_from_if_that_is_wanted(tmp_path):
    specs, _ = three_rounds(tmp_path, "latest")
    starts = [specs[StepId("dpo", number)].inputs["llm"].key for number in (1, 2, 3)]
    assert starts[0] == "tiny_llm-1" and len(set(starts)) == 3
    assert {spec.seed for spec in specs.values()} == {5}
