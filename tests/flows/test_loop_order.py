"""What a round trains, in every order: which steps there are, and whose texts and rewards they use."""

from dataclasses import dataclass, field
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_loop
from finished_loop import finished
from prefect import flow
from prefect.logging import disable_run_logger
from store_keys import full

from expandr_core.options.loop import JointLoopOptions, LoopOptions
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import StepId
from expandr_core.store.store import Store
from flows.joint_loop import run_rounds
from tasks.data import Data, Evaluation
from tasks.dry_run import StepCount
from tasks.models import Models, check_adapter

ORDERS = get_args(LoopOptions.model_fields["order"].annotation)
TRAINED = ("train_retriever", "pairs", "dpo")


@dataclass(frozen=True)
class Specified(StepCount):
    """A run that makes nothing, and remembers what every step was to make."""

    specs: dict[StepId, StageSpec] = field(default_factory=dict)

    def make(self, step_id: StepId, title: str, spec: StageSpec) -> Artifact:
        self.specs[step_id] = spec
        return super().make(step_id, title, spec)


def two_rounds(tmp_path, order: str) -> tuple[Specified, Models]:
    store = Store(str(tmp_path / order))
    folder = store.scratch / "queries"
    folder.mkdir()
    pq.write_table(pa.table({"query_id": ["q1", "q2"]}), folder / "preference.parquet")
    queries = store.commit(full("prepare-1"), folder, [], {"counts": {}}).at("preference.parquet")
    some = Artifact(key="corpus-1", digest="corpus")
    splits = {
        split: Evaluation(Artifact(key=f"{split}-1", digest=split), some, some)
        for split in ("dev", "test")
    }
    data = Data(None, some, some, queries, some, splits)
    base = Models(0, Artifact(key="llm-0", digest="llm"), Artifact(key="r-0", digest="r"))
    loop = LoopOptions(order=order)
    pipeline = Specified(store.url, JointLoopOptions(loop=loop))
    best: list[Models] = []

    @flow(name="two-rounds")
    def run() -> None:
        with disable_run_logger():
            best.append(run_rounds(pipeline, data, base)[0])

    run()
    return pipeline, best[0]


def systems(pipeline: Specified) -> list[str]:
    """Return the systems of the report."""
    return [each["name"] for each in pipeline.specs[StepId("compare")].options["systems"]]


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("order", "trained"),
    [
        ("align_first", ["pairs", "dpo", "train_retriever"]),
        ("retriever_first", ["train_retriever", "pairs", "dpo"]),
        ("retriever_only", ["train_retriever"]),
        ("align_only", ["pairs", "dpo"]),
    ],
)
def test_every_round_trains_in_this_order_and_nothing_else(tmp_path, order, trained):
    pipeline, best = two_rounds(tmp_path, order)
    for number in (1, 2):
        steps = [
            step.id.stage
            for step in pipeline.steps
            if step.id.round == number and step.id.stage in TRAINED and step.id.name == ""
        ]
        assert steps == trained
    assert best.round == 2
    assert (best.llm.key == "llm-0") == (order == "retriever_only")
    assert (best.retriever.key == "r-0") == (order == "align_only")
    control = StepId("train_retriever", 0, "control")
    assert (control in pipeline.specs) == (order != "align_only")


def written_by(pipeline: Specified, round: int) -> str:
    """Return the key of the LLM whose texts the round's retriever is trained on."""
    texts = pipeline.specs[StepId("train_retriever", round)].inputs["expansions"]
    [spec] = [s for step, s in pipeline.specs.items() if step == ("expand", round, "training", 0)]
    assert spec.key == texts.key
    return spec.inputs["llm"].key


@pytest.mark.usefixtures("prefect_server")
def test_retriever_first_trains_on_texts_of_the_llm_before_and_rewards_by_the_new_retriever(
    tmp_path,
):
    pipeline, _ = two_rounds(tmp_path, "retriever_first")
    merged = pipeline.steps.artifact("merge", 1).key
    assert [written_by(pipeline, number) for number in (1, 2)] == ["llm-0", merged]
    trained = pipeline.steps.artifact("train_retriever", 1)
    assert pipeline.specs[StepId("reward", 1)].inputs["retriever"] == trained
    other, _ = two_rounds(tmp_path, "align_first")
    assert written_by(other, 1) == other.steps.artifact("merge", 1).key
    assert other.specs[StepId("reward", 1)].inputs["retriever"].key == "r-0"


@pytest.mark.usefixtures("prefect_server")
def test_the_report_has_no_systems_of_a_model_that_is_not_trained(tmp_path):
    found = {order: systems(two_rounds(tmp_path, order)[0]) for order in ORDERS}
    start = ["bm25", "bm25-untrained", "query", "untrained", "untrained-alone", "untrained-greedy"]
    control, gate = ["control", "control-untrained"], ["learned", "gated"]
    assert found["align_only"] == [
        *start,
        *("round-1", "round-1-greedy", "round-2", "round-2-greedy"),
        *gate,
    ]
    assert found["retriever_only"] == [
        *(*start, *control),
        *("round-1", "round-1-query", "round-1-alone", "round-1-greedy"),
        *("round-2", "round-2-query", "round-2-alone", "round-2-greedy"),
        *gate,
    ]
    assert set(found["retriever_first"]) - set(found["align_first"]) == {
        *("round-1-before", "round-2-before")
    }


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("order", ORDERS)
def test_what_is_kept_and_what_is_asked_is_measured_and_asked_once(tmp_path, order):
    pipeline, _ = two_rounds(tmp_path, order)
    options, measured = pipeline.specs[StepId("compare")].options, set(systems(pipeline))
    asked = [(each["before"], each["after"]) for each in options["contrasts"]]
    assert len(set(asked)) == len(asked)
    assert {name for pair in asked for name in pair} <= measured
    expanded, alone = options["kept"]["expanded"], options["kept"]["alone"]
    assert {expanded, alone} <= measured
    assert {("bm25", expanded), (alone, expanded)} <= set(asked)
    audited = {step.name for step in pipeline.specs if step.stage == "audit"}
    trained = set() if order == "align_only" else {"test/control"}
    assert audited == {"test/round-1", "test/round-2"} | trained


def test_an_llm_that_is_not_aligned_needs_no_layers_to_adapt():
    imported = {"llm": Artifact(key="m-1", digest="m", counts={"layer/other": 1})}
    loop = LoopOptions(order="retriever_only")
    check_adapter(imported, JointLoopOptions(loop=loop))


def test_the_lineage_of_retriever_first_leads_to_the_untrained_llm(first, store):
    loop = tiny_loop.OPTIONS.loop.model_copy(update={"order": "retriever_first"})
    run = finished(store, tiny_loop.OPTIONS.model_copy(update={"loop": loop}))
    opened = Store(str(store))
    trained = opened.manifest(run.artifact("train_retriever", 1).key)
    texts = opened.manifest(trained["inputs"]["expansions"]["key"])
    assert texts["inputs"]["llm"]["key"] == first.artifact("tiny_llm").key
    rewarded = opened.manifest(run.artifact("reward", 1).key)
    assert rewarded["inputs"]["retriever"]["key"] == run.artifact("train_retriever", 1).key
    assert StepId("expand", 1, "candidates") not in run.made
