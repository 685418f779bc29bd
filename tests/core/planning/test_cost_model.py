"""Throughputs fitted to steps of known cost, and what a stage's artifact will count."""

import pyarrow as pa
import pytest
from evaluation_world import put
from hypothesis import given
from hypothesis import strategies as st

from expandr_core.errors import DataError
from expandr_core.options.evaluation import RankingOptions
from expandr_core.options.generation import ChatOptions, GenerationOptions, SamplingOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.planning.cost_model import (
    StageThroughput,
    StepCost,
    Throughput,
    fit,
    last_of_each,
    predicted,
    throughput_of,
)
from expandr_core.planning.workload import TextStatistics, predicted_counts, workload
from expandr_core.stages.evaluate import EvaluateOptions
from expandr_core.stages.expand import ExpandOptions
from expandr_core.stages.mine import MineOptions
from expandr_core.stages.train_retriever import TrainRetrieverOptions
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import StepId
from expandr_core.store.store import Store

LOOP = JointLoopOptions(
    expand=GenerationOptions(queries_per_shard=4, candidates=SamplingOptions(samples=8))
)
EXPAND = ExpandOptions.of(LOOP, LOOP.expand.candidates, "q2d", ChatOptions()).model_dump()
LENGTH = f"q2d/{LOOP.expand.candidates.max_new_tokens}"
MINE, TRAIN = MineOptions.of(LOOP).model_dump(), TrainRetrieverOptions.of(LOOP).model_dump()
RANKING = RankingOptions.of(LOOP.evaluate, "ignore")
EVALUATE = EvaluateOptions.of(LOOP.retriever, RANKING, 0.5).model_dump()
COMPARE = {
    "systems": [{"name": "a", "title": "A"}],
    "datasets": [{"name": "test"}],
    "contrasts": [],
    "significance": {},
}


def step(
    stage: str, workload: dict[str, float], seconds: float, start: float | None = None, **counts
):
    options = {"prompt": {"name": "q2d"}, "sampling": {"max_new_tokens": 64}}
    return StepCost(StepId(stage), counts, workload, seconds, 10.0, options, start)


def cost(throughput: StageThroughput, workload: dict[str, float]) -> float:
    return throughput.start_seconds + sum(
        workload[name] / throughput for name, throughput in throughput.per_second.items()
    )


# Fitting


@given(
    start=st.floats(0, 100),
    each=st.floats(0.001, 1),
    sizes=st.lists(st.integers(10, 10_000), min_size=1, max_size=9),
)
def test_a_cost_that_is_linear_is_found_if_the_sizes_differ_enough(start, each, sizes):
    sizes += [2 * max(sizes)]
    steps = [step("reward", {"candidates": size}, start + each * size) for size in sizes]
    for size in (min(sizes), 100 * max(sizes)):
        found = cost(fit("reward", steps), {"candidates": size})
        assert found == pytest.approx(start + each * size, rel=1e-6)


def test_steps_of_about_one_size_are_put_down_to_it():
    steps = [step("reward", {"candidates": size}, 5.0) for size in (100, 150)]
    found = fit("reward", steps)
    assert cost(found, {"candidates": 1000}) == pytest.approx(1000 * 10 / 250)


def test_two_workloads_are_told_apart():
    prompts, tokens = 0.05, 0.001
    steps = [
        step("expand", {"prompts": p, "tokens": t}, 2 + prompts * p + tokens * t)
        for p, t in ((16, 500), (16, 4000), (64, 2000), (64, 16_000))
    ]
    found = fit("expand", steps)
    assert found.start_seconds == pytest.approx(2)
    assert found.per_second == pytest.approx({"prompts": 20, "tokens": 1000})


def test_a_start_that_was_measured_is_not_guessed():
    steps = [step("dpo", {"pairs": 100}, 30, start=10), step("dpo", {"pairs": 120}, 36, start=12)]
    found = fit("dpo", steps)
    assert found.start_seconds == pytest.approx(11)
    assert found.per_second["pairs"] == pytest.approx(5)


def test_where_no_throughput_can_be_told_the_largest_step_bounds_it():
    steps = [step("encode", {"passages": 100}, 2.0), step("encode", {"passages": 400}, 0.8)]
    assert fit("encode", steps) == StageThroughput(per_second={"passages": 500}, bytes=10)


def test_a_stage_without_workload_costs_its_mean():
    assert fit("merge", [step("merge", {}, 4), step("merge", {}, 8)]).start_seconds == 6


def test_texts_and_acceptance_are_averaged_over_the_steps():
    throughput = throughput_of(
        [
            step("expand", {"prompts": 1, "tokens": 90}, 1, queries=1, texts=3, tokens=90),
            step("expand", {"prompts": 1, "tokens": 10}, 1, queries=1, texts=1, tokens=10),
            step("pairs", {"candidates": 3}, 1, queries=30, accepted=20),
            step("pairs", {"candidates": 3}, 1, queries=10, accepted=10),
        ],
        "four steps",
    )
    assert throughput.tokens_per_text == {"q2d/64": 25}
    assert throughput.accepted_share == 0.75
    with pytest.raises(DataError, match="four steps: no cost of the stage 'merge'"):
        throughput.of("merge")


def test_what_the_first_step_took_longer_is_put_down_to_loading():
    def mine(queries: int, seconds: float) -> StepCost:
        return step("mine", {"queries": queries}, seconds)

    loading = [mine(10, 4.5), mine(10, 1.1), step("sample", {}, 3)]
    throughput = throughput_of(
        [mine(20, 2), mine(80, 8), step("merge", {}, 4)], "a process", loading
    )
    assert throughput.of("mine").load_seconds == pytest.approx(3.5)
    assert throughput.of("merge").load_seconds == 0
    faster = throughput_of([mine(20, 2), mine(80, 8)], "a process", [mine(10, 0.5)])
    assert faster.of("mine").load_seconds == 0


def test_a_lazy_step_that_another_goes_on_from_does_not_count():
    ids = [StepId("expand", 1, "candidates", 2), StepId("pairs", 1, "", 2),
           StepId("expand", 1, "candidates", 5), StepId("expand", 2, "candidates")]  # fmt: skip
    steps = [StepCost(each, {}, {}, 0, 0, {}) for each in ids]
    assert {each.id for each in last_of_each(steps)} == set(ids[1:])


# What a stage will count


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def queries(store) -> Artifact:
    """Ten queries, two of them with two positives each."""
    ids = [*[f"q{number}" for number in range(10)], "q0", "q1"]
    return put(store, "prepare-1", {"queries.parquet": pa.table({"query_id": ids})}).at(
        "queries.parquet"
    )


def spec_of(stage: str, options: dict, max_shards: int = 0, **inputs: Artifact) -> StageSpec:
    return StageSpec(
        stage=stage, version=1, options=options, runtime={"options": options}, inputs=inputs,
        max_shards=max_shards,
    )  # fmt: skip


def texts(accepted_share: float = 1) -> TextStatistics:
    return TextStatistics(source="", tokens_per_text={LENGTH: 20}, accepted_share=accepted_share)


def artifact(**counts: float) -> Artifact:
    return Artifact(key="stage-1", digest="1", counts=counts)


def test_texts_are_those_of_distinct_queries_in_the_shards_asked_for(store, queries):
    options = EXPAND
    found = predicted_counts(spec_of("expand", options, queries=queries), texts(), store)
    assert found == {"queries": 10, "texts": 80, "tokens": 1600}
    parts = [
        predicted_counts(spec_of("expand", options, shards, queries=queries), texts(), store)
        for shards in (1, 2, 3, 4)
    ]
    assert [each["queries"] for each in parts] == sorted(each["queries"] for each in parts)
    assert parts[0]["queries"] < 10 == parts[-1]["queries"]


def test_pairs_are_the_accepted_queries_up_to_the_most(store):
    options = {"preferences": {"max_pairs": 30, "dpo_dev_share": 0.1}}
    spec = spec_of("pairs", options, rewards=artifact(queries=100, candidates=800))
    few = predicted_counts(spec, texts(0.2), store)
    assert few == {"queries": 100, "accepted": 20, "pairs": 20, "train": 18}
    many = predicted_counts(spec, texts(0.5), store)
    assert (many["accepted"], many["pairs"]) == (50, 30)


@pytest.mark.parametrize(
    ("stage", "options", "inputs", "counts", "expected"),
    [
        ("dpo", {"training": {"epochs": 2, "batch_size": 16, "evaluation_steps": 5}}, {},
         {"train_pairs": 90, "dev_pairs": 10}, {"pairs": 180, "dev pairs": 30}),
        ("sft", {"training": {"epochs": 2, "batch_size": 16, "evaluation_steps": 5}}, {},
         {"train_texts": 90, "dev_texts": 10}, {"texts": 180, "dev texts": 30}),
        ("kto", {"training": {"epochs": 1, "batch_size": 16, "evaluation_steps": 5}}, {},
         {"train_texts": 720, "dev_texts": 80}, {"texts": 720, "dev texts": 720}),
        ("mine", MINE, {"embeddings": {"passages": 50}}, {"queries": 4},
         {"queries": 4, "similarities": 200}),
        ("evaluate", EVALUATE, {"embeddings": {"passages": 50}, "expansions": {"texts": 12}},
         {"queries": 4}, {"texts": 16, "similarities": 200}),
        ("train_retriever", TRAIN, {}, {"rows": 60}, {"rows": 60, "expanded rows": 0}),
        ("train_retriever", TRAIN, {"expansions": {}}, {"rows": 60}, {"rows": 60, "expanded rows": 60}),
        ("compare", COMPARE, {"queries/test": {}, "measured/test/a/0": {"queries": 4},
          "measured/test/b/0": {"queries": 4}}, {},
         {"systems": 2, "results": 8}),
        ("tiny_llm", {"steps": 5, "batch_size": 3}, {}, {}, {"texts": 15}),
        ("merge", {}, {}, {}, {}),
    ],
)  # fmt: skip
def test_what_the_time_of_a_stage_depends_on(store, stage, options, inputs, counts, expected):
    given_inputs = {role: artifact(**own) for role, own in inputs.items()}
    assert workload(stage, options, given_inputs, counts, store) == expected


def test_the_texts_of_kto_are_the_candidates_of_pairs_and_of_as_many_rejected_queries(store):
    pairs = artifact(queries=100, accepted=80, pairs=40, train=36)
    inputs = {"pairs": pairs, "rewards": artifact(queries=100, candidates=800)}
    found = predicted_counts(spec_of("kto", {}, **inputs), texts(), store)
    assert found == {"train_texts": (36 + 10) * 8, "dev_texts": 4 * 8}
    of_sft = predicted_counts(spec_of("sft", {}, pairs=pairs), texts(), store)
    assert of_sft == {"train_texts": 36, "dev_texts": 4}


def test_a_step_costs_its_start_and_its_workload(store, queries):
    options = EXPAND
    throughput = Throughput(
        source="a file",
        stages={
            "expand": StageThroughput(
                start_seconds=5, load_seconds=3, per_second={"tokens": 400}, bytes=2
            )
        },
        tokens_per_text={LENGTH: 20},
    )
    spec = spec_of("expand", options, queries=queries)
    found = predicted(StepId("expand"), spec, throughput, store)
    assert (found.seconds, found.bytes) == (5 + 1600 / 400, 3200)
    assert (
        predicted(StepId("expand"), spec, throughput, store, first=True).seconds
        == 3 + found.seconds
    )
    answers = spec_of("expand", EXPAND | {"prompt": {"name": "q2a"}}, queries=queries)
    longer = EXPAND | {"sampling": EXPAND["sampling"] | {"max_new_tokens": 999}}
    with pytest.raises(DataError, match=r"'q2d' with max_new_tokens 999"):  # not as long as before
        predicted(StepId("expand"), spec_of("expand", longer, queries=queries), throughput, store)
    with pytest.raises(DataError, match=r"a file has no mean text length.*'q2a'"):
        predicted(StepId("expand"), answers, throughput, store)


def test_a_quantity_that_a_stage_does_not_have_is_not_taken_for_free(store, queries):
    old = StageThroughput(per_second={"tokens": 400, "words": 300})
    throughput = Throughput(source="a file", stages={"expand": old}, tokens_per_text={LENGTH: 20})
    fault = "a file: the stage 'expand' has no 'words', only prompts, tokens; "
    with pytest.raises(DataError, match=fault):
        predicted(StepId("expand"), spec_of("expand", EXPAND, queries=queries), throughput, store)


def test_a_quantity_that_was_measured_and_took_no_time_is_told_from_one_that_was_not_measured():
    steps = [
        step("dpo", {"pairs": pairs, "dev pairs": 0, "words": 1}, pairs / 10) for pairs in (10, 40)
    ]
    found = fit("dpo", steps)
    assert found.per_second == {"pairs": pytest.approx(10), "words": None}
    assert found.seconds({"pairs": 20, "dev pairs": 5, "words": 9}) == pytest.approx(2)


def test_a_throughput_is_above_0():
    with pytest.raises(ValueError, match="greater than 0"):
        StageThroughput(per_second={"tokens": 0})


def test_steps_that_tell_how_long_they_loaded_alone_tell_what_the_work_costs():
    """One that copied all its vectors tells nothing, and one that loaded for long does not cost more."""

    def step(passages, seconds, start):
        counts = {"passages": passages}
        return StepCost(StepId("encode"), counts, counts, seconds, 0, {}, start)

    found = fit("encode", [step(0, 0.5, None), step(100, 14, 12), step(1000, 32, 12)])
    assert found.start_seconds == pytest.approx(12)
    assert found.per_second["passages"] == pytest.approx(50)
