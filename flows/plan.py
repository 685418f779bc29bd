"""Plan: what a run will cost, before it is started; and beside it what one has cost.

The steps are those of the joint loop itself, in a pipeline that makes nothing. What a stage costs is
known from earlier runs in the store with the same models, or from a calibration: the loop in small,
on samples of the data.
"""

from collections import Counter
from dataclasses import replace
from datetime import datetime
from functools import cache, partial

from prefect import flow, get_run_logger
from prefect.logging import disable_run_logger
from pydantic import BaseModel

from expandr_core.errors import DataError
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.preferences import ACCEPT_ALL
from expandr_core.planning.cost_model import StepCost, Throughput, measured, throughput_of
from expandr_core.runtime.runner import module_of
from expandr_core.stages.sample import OPTIONS as SampleOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import Step, StepId
from flows.joint_loop import run_rounds, start_models
from flows.promotion import check_promotion, plan_gate
from tasks.data import Data, Evaluation, prepare_data
from tasks.dry_run import DryRun
from tasks.imports import check_start, import_start
from tasks.models import Models, check_adapter, import_models
from tasks.pipeline import Pipeline
from tasks.preferences import choose_pairs

PASSAGES_PER_QUERY = 16  # in a sample
LATEST = 3  # runs that have a step, to learn its cost from


class Plan(BaseModel):
    """What a run will cost, and by which throughput."""

    throughput: Throughput
    steps: list[StepCost]


@flow(name="plan")
def plan(
    options: JointLoopOptions,
    throughput: Throughput | None = None,
    before: datetime | None = None,
    calibrate: bool = False,
    sample: int = 64,
    store: str = "store",
) -> Plan:
    """Predict the steps of a run of the joint loop.

    The data is prepared (the run finds it), and so are the models if there is a calibration.

    Args:
        options: The options of every stage.
        throughput: What stages cost; else it is learned from earlier runs, or measured.
        before: Learn from runs that ended before, only; without one there is no prediction.
        calibrate: Measure, even if there are runs to learn from.
        sample: Queries of the larger sample of a calibration; the smaller one has a quarter.
        store: Folder or s3:// URL that keeps every artifact.

    Raises:
        DataError: if there is nothing to predict by, or too few pairs are predicted.
    """
    check_promotion(options.promotion)
    check_start(options)
    pipeline = Pipeline(store, options)
    imported = import_models(pipeline)
    check_adapter(imported, options)
    data = prepare_data(pipeline)
    models = cache(partial(start_models, pipeline, data, imported))
    if not throughput and not calibrate:
        throughput = learned(pipeline, before)
        if before and not throughput:
            raise DataError(
                "no run with these models ended before that one, to predict it by; give "
                "--throughputs FILE, as the plan's --save wrote it, or --calibrate"
            )
    if not throughput:
        throughput = calibrated(pipeline, data, models(), sample)
    get_run_logger().info("planned by %s", throughput.source)
    if options.loop.start_from != "data":  # what is imported is in the store, as the data is
        data = import_start(pipeline, data, models().llm)
    planned = DryRun(store, options, throughput=throughput)
    with disable_run_logger():  # of rounds that do not take place
        best, _ = run_rounds(planned, data, start_models(planned, data, imported))
        if options.promotion.enabled:
            plan_gate(pipeline, planned, data, best)
    return Plan(throughput=throughput, steps=planned.costs)


def learned(pipeline: Pipeline, before: datetime | None) -> Throughput | None:
    """Learn from earlier runs with the same models, of each step from the latest that have it.

    None if there are none.
    """
    store, names, steps = pipeline.open(), list[str](), list[StepCost]()
    models = pipeline.options.model_dump(mode="json", include={"llm", "retriever", "device"})
    known: Counter[tuple[str, str]] = Counter()
    for record in reversed(store.records()):
        if "kind" in record:  # of a suite
            continue
        ended = datetime.fromisoformat(record["finished"])
        if not models.items() <= record["options"].items() or (before and ended >= before):
            continue
        made = [Step(**step) for step in record["steps"]]
        new = [step for step in made if known[step.id.stage, step.id.name] < LATEST]
        if new:
            names.append(record["name"])
            steps += measured(store, new)
            known.update({(step.id.stage, step.id.name) for step in new})
    return throughput_of(steps, f"as in {' and '.join(names)}") if names else None


def calibrated(pipeline: Pipeline, data: Data, models: Models, sample: int) -> Throughput:
    """Run one round on samples of the data: of a quarter, and of all of the queries asked for.

    One on an eighth comes first: it only tells how much longer takes what is done first in a process.
    """
    store = pipeline.open()
    steps = measured(store, pipeline.steps)  # of the models that were built
    loading: list[StepCost] = []
    for part in (8, 4, 1):
        queries = max(2, sample // part)
        get_run_logger().info("calibration with %d queries", queries)
        small = Pipeline(pipeline.store, relaxed(pipeline.options))
        run_rounds(small, subset_of(small, data, queries), models)
        if part == 8:  # a process of its own loads anew each time
            made = measured(store, small.steps)
            loading = [step for step in made if module_of(step.stage).ISOLATION != "always"]
        else:
            steps += measured(store, with_run_options(small, pipeline.options))
    return throughput_of(steps, f"a calibration with {sample} queries", loading)


def with_run_options(small: Pipeline, options: JointLoopOptions) -> list[Step]:
    """Return the steps of a round on a sample, but with pairs as the run accepts them."""
    if options.loop.order == "retriever_only":
        return [step for step in small.steps if step.id.stage != "sample"]
    relaxed_pairs = StepId("pairs", 1)
    rewards = small.steps.artifact("reward", 1)
    view = replace(small, options=options).round(1)
    choose_pairs(view, rewards, "run options", partial=True)
    return [step for step in small.steps if step.id != relaxed_pairs and step.id.stage != "sample"]


def relaxed(options: JointLoopOptions) -> JointLoopOptions:
    """Change options so that one round on a few queries runs to its end."""
    accept_all = {
        "acceptance": "threshold",
        "acceptance_value": ACCEPT_ALL,
        "minimum_margin": 0,
        "beats_query": False,
        "lazy": False,
        "dpo_dev_share": 0,
        "minimum_pairs": 1,
        "max_length_bias": 1,
    }
    return options.model_copy(
        update={
            "preferences": options.preferences.model_copy(update=accept_all),
            "loop": options.loop.model_copy(update={"rounds": 1}),
        }
    )


def subset_of(pipeline: Pipeline, data: Data, queries: int) -> Data:
    """Cut the data down to some queries, and some passages for each of them."""

    samples: dict[str, Artifact] = {}

    def some(table: Artifact, size: int) -> Artifact:
        name = f"{table.key}/{table.path}"
        if name not in samples:
            title, options = f"sample {size} of {table.path}", SampleOptions(size=size)
            inputs = {"table": table}
            samples[name] = pipeline.step("sample", inputs, title, options=options, name=name)
        return samples[name].at(table.path)

    def passages(corpus: Artifact) -> Artifact:
        return some(corpus, queries * PASSAGES_PER_QUERY)

    return replace(
        data,
        pairs=None,  # these are made in a calibration, to measure it
        expansions=None,
        corpus=passages(data.corpus),
        collection=passages(data.collection) if data.collection else None,
        preference=some(data.preference, queries),
        retriever=some(data.retriever, queries),
        unlabelled=some(data.unlabelled, queries) if data.unlabelled else None,
        evaluations={
            split: Evaluation(some(each.queries, queries), each.qrels, passages(each.corpus))
            for split, each in data.evaluations.items()
        },
    )
