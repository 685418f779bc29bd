"""Which rounds are kept, and which models the next one starts from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import pytest
from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import StepId
from expandr_core.store.store import Store
from flows.joint_loop import run_rounds
from tasks.comparison import PREDICTED, Gain
from tasks.data import Data, Evaluation
from tasks.dry_run import StepCount
from tasks.models import Models

pytestmark = pytest.mark.usefixtures("prefect_server")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Given(StepCount):
    """A run that makes nothing; what a round brings on the dev queries is given."""

    specs: dict[StepId, StageSpec] = field(default_factory=dict)
    gains: Sequence[Gain] = ()

    def make(self, step_id: StepId, title: str, spec: StageSpec) -> Artifact:
        self.specs[step_id] = spec
        return super().make(step_id, title, spec)

    def ask(self, question: Callable[[Store], Answer], *, predicted: Answer) -> Answer:
        if predicted != PREDICTED:
            return predicted
        measured = sum(step.stage == "compare" for step in self.specs)
        return cast(Answer, self.gains[(measured - 1) % len(self.gains)])


def three_rounds(tmp_path, *gains: Gain, **loop: Any) -> tuple[dict[StepId, StageSpec], Models]:
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
    loop = {"rounds": 3, "stop_without_gain": False, **loop}
    options = JointLoopOptions(seed=5, loop=loop)
    pipeline = Given(store.url, options, gains=gains or (Gain(-1.0, 1.0, 50),))
    found: list[Models] = []

    @flow(name="three-rounds")
    def run() -> None:
        found.append(run_rounds(pipeline, data, base)[0])

    run()
    return pipeline.specs, found[0]


def test_after_a_round_without_gain_the_next_starts_from_the_best_with_another_seed(tmp_path):
    specs, best = three_rounds(tmp_path, next_round="best")
    assert best.round == 0
    trained = [specs[StepId("dpo", number)] for number in (1, 2, 3)]
    assert {spec.inputs["llm"].key for spec in trained} == {"tiny_llm-1"}
    assert [spec.seed for spec in trained] == [5, 6, 7]
    assert {spec.seed for step, spec in specs.items() if step.stage == "evaluate"} == {5}


def test_the_latest_models_are_gone_on_from_if_that_is_wanted(tmp_path):
    specs, _ = three_rounds(tmp_path, next_round="latest")
    starts = [specs[StepId("dpo", number)].inputs["llm"].key for number in (1, 2, 3)]
    assert starts[0] == "tiny_llm-1" and len(set(starts)) == 3
    assert {spec.seed for spec in specs.values()} == {5}


def kept_of(specs: dict[StepId, StageSpec]) -> dict[str, Any]:
    return specs[StepId("compare")].options["kept"]


def test_a_gain_that_may_be_chance_is_not_kept(tmp_path):
    chance, sure = Gain(0.0095, 0.8125, 50), Gain(0.2, 0.001, 50)
    specs, best = three_rounds(tmp_path / "5 %", chance, sure, chance)
    assert best.round == 2 and kept_of(specs)["expanded"] == "round-2"
    assert kept_of(specs)["reason"] == (
        "The models of round 2 are kept. nDCG@10 on the dev queries: round 1 +0.009 against the start "
        "(p = 0.812), round 2 +0.200 against the start (p = 0.001), round 3 +0.009 against round 2 "
        "(p = 0.812); a round is kept if it gains with p up to 0.05."
    )
    specs, best = three_rounds(tmp_path / "any", chance, keep_level=1)
    assert best.round == 3
    assert kept_of(specs)["reason"].endswith("a round is kept if it scores higher.")


def test_the_loop_stops_at_a_round_that_is_not_kept(tmp_path):
    gains = Gain(0.2, 0.04, 50), Gain(0.1, 0.06, 50)
    specs, best = three_rounds(tmp_path, *gains, stop_without_gain=True)
    assert best.round == 1 and StepId("dpo", 2) in specs and StepId("dpo", 3) not in specs


def test_the_report_says_if_dev_queries_are_too_few_to_show_a_gain(tmp_path):
    specs, best = three_rounds(tmp_path, Gain(0.04, 0.0625, 5))
    assert best.round == 0 and kept_of(specs)["expanded"] == "untrained"
    few = "5 dev queries (or clusters of them) cannot show a gain at p = 0.05, which takes 6: "
    assert few in kept_of(specs)["reason"]


@pytest.mark.parametrize(
    ("level", "gain"),
    [(1, Gain(0.04, 1.0, 1)), (0.0625, Gain(0.04, 2 / 2**5, 5)), (0.001, Gain(0.3, 1e-9, 10))],
)
def test_dev_queries_that_just_reach_the_level_are_not_called_too_few(tmp_path, level, gain):
    specs, best = three_rounds(tmp_path, gain, keep_level=level, rounds=1)
    assert best.round == 1 and "cannot show a gain" not in kept_of(specs)["reason"]
