"""Plan: what a run will cost, before it is started; and beside it what one has cost.

The steps are those of the joint loop itself, in a pipeline that makes nothing. What a stage costs is
known from earlier runs in the store with the same models, or from a calibration: the loop in small,
on samples of the data.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from typing import Any

from prefect import flow, get_run_logger
from prefect.logging import disable_run_logger
from pydantic import BaseModel

from expandr_core.errors import DataError
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.preferences import ACCEPT_ALL
from expandr_core.planning.cost_model import (
    StepCost,
    Throughput,
    UnknownCost,
    costly_options,
    costly_options_of,
    measured,
    throughput_of,
)
from expandr_core.runtime.runner import module_of
from expandr_core.stages.sample import OPTIONS as SampleOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import Step, StepId
from expandr_core.store.store import Store
from flows.joint_loop import run_rounds, start_models
from flows.promotion import check_promotion, plan_gate
from tasks.data import Data, Evaluation, prepare_data
from tasks.dry_run import DryRun
from tasks.imports import check_start, import_start
from tasks.models import Models, check_adapter, import_models
from tasks.pipeline import Pipeline
from tasks.preferences import choose_pairs

PASSAGES_PER_QUERY = 16  # in a sample
NEVER = 1e-6  # the chance that all pairs of a calibration are held out, and none is trained on
LATEST = 3  # runs that have a step, to learn its cost from


class Plan(BaseModel):
    """What a run will cost.

    Attributes:
        throughputs: that it was predicted by; of a suite, one for each kind of models.
        steps: that it will take.
    """

    throughputs: list[Throughput]
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
    if options.loop.start_from != "data":  # what is imported is in the store, as the data is
        data = import_start(pipeline, data, models().llm)

    def measure() -> Throughput:
        make = partial(run_round, data=data, models=models())
        built = measured(pipeline.open(), pipeline.steps)
        return Calibration(pipeline, sample, built).run(make)

    def dry_run(known: Throughput) -> DryRun:
        planned = DryRun(store, options, throughput=known)
        best, _ = run_rounds(planned, data, start_models(planned, data, imported))
        if options.promotion.enabled:
            plan_gate(pipeline, planned, data, best)
        return planned

    known = throughput
    if not known and not calibrate:
        known = learned(pipeline.open(), costly_options(options), before)
    planned = predict(dry_run, known, measure, fixed=bool(throughput or before))
    return Plan(throughputs=[planned.throughput], steps=planned.costs)


def predict(
    dry_run: Callable[[Throughput], DryRun],
    known: Throughput | None,
    measure: Callable[[], Throughput],
    fixed: bool,
) -> DryRun:
    """Dry-run by known costs; if there are none, or they lack one, by those of a calibration.

    Args:
        dry_run: predicts the steps.
        known: costs.
        measure: calibrates.
        fixed: the plan is about the known costs, so nothing is measured in place of them.

    Raises:
        UnknownCost: if one is lacking nevertheless.
    """
    log = get_run_logger()
    if known:
        log.info("throughputs: %s", known.source)
        try:
            with disable_run_logger():  # of rounds that do not take place
                return dry_run(known)
        except UnknownCost as lacking:
            if fixed:
                raise
            log.info("%s; so a calibration measures all", str(lacking).partition(";")[0])
    known = measure()
    with disable_run_logger():
        return dry_run(known)


def learned(store: Store, options: dict[str, Any], before: datetime | None) -> Throughput | None:
    """Learn from earlier runs, of each step from the latest that have it.

    Args:
        store: that has the runs.
        options: which cost depends on; runs with others, or with several pairs of models, do not count.
        before: runs that ended later do not count, either.

    Returns:
        None if there is no such run, and one may be made now.

    Raises:
        DataError: if there is no such run before.
    """
    names, steps = list[str](), list[StepCost]()
    known: Counter[tuple[str, str]] = Counter()
    for record in reversed(store.records()):
        ended = datetime.fromisoformat(record["finished"])
        if costly_options_of(record) != [options] or (before and ended >= before):
            continue
        made = [Step(**step) for step in record["steps"]]
        new = [step for step in made if known[step.id.stage, step.id.name] < LATEST]
        new = [step for step in new if not mostly_copied(step)]
        if new:
            names.append(record["name"])
            steps += measured(store, new)
            known.update({(step.id.stage, step.id.name) for step in new})
    encoded = any(step.stage == "encode" for step in steps)
    if before and not encoded:
        raise DataError(
            "no run with these models ended before that one, to predict it by; give "
            "--throughputs FILE, as the plan's --save wrote it, or --calibrate"
        )
    return throughput_of(steps, f"as in {' and '.join(names)}") if encoded else None


def mostly_copied(step: Step) -> bool:
    """Tell whether an encoding found most of its vectors, so that its time says little of its cost."""
    counts = step.artifact.counts
    return step.id.stage == "encode" and counts.get("reused", 0) > counts.get("encoded", 0)


@dataclass(frozen=True)
class Calibration:
    """Runs on samples of the data: with a quarter, and with all of the queries asked for.

    One on an eighth comes first: it only tells how much longer takes what is done first in a process.

    Attributes:
        pipeline: of the plan.
        sample: how many queries are asked for.
        built: steps that are measured already, such as models that were built.
    """

    pipeline: Pipeline
    sample: int
    built: Sequence[StepCost] = ()

    def run(self, make: Callable[[Pipeline, int], list[Step]]) -> Throughput:
        """Call `make` with a pipeline and a number of queries, and fit what the steps cost."""
        store, steps, loading = self.pipeline.open(), [*self.built], list[StepCost]()
        for part in (8, 4, 1):
            queries = max(2, self.sample // part)
            get_run_logger().info("calibration with %d queries", queries)
            small = Pipeline(self.pipeline.store, self.pipeline.options, fresh=True)
            made = make(small, queries)
            ran = measured(store, [step for step in made if step.id.stage != "sample"])
            if part == 8:  # a process of its own loads anew each time
                loading = [step for step in ran if module_of(step.stage).ISOLATION != "always"]
            else:
                steps += ran
        return throughput_of(steps, f"a calibration with {self.sample} queries", loading)


def run_round(small: Pipeline, queries: int, data: Data, models: Models) -> list[Step]:
    """Run one round on samples of the data, and make pairs as the run accepts them.

    Returns:
        The steps that tell what those of the run cost.
    """
    options, small = small.options, replace(small, options=relaxed(small.options, queries))
    run_rounds(small, subset_of(small, data, queries), models)
    if options.loop.order == "retriever_only":
        return list(small.steps)
    relaxed_pairs = StepId("pairs", 1)
    rewards = small.steps.artifact("reward", 1)
    choose_pairs(replace(small, options=options).round(1), rewards, "run options", partial=True)
    return [step for step in small.steps if step.id != relaxed_pairs]


def relaxed(options: JointLoopOptions, queries: int) -> JointLoopOptions:
    """Change options so that one round on a few queries runs to its end."""
    share = options.preferences.dpo_dev_share
    accept_all = {
        "dpo_dev_share": share if share**queries < NEVER else 0,
        "acceptance": "threshold",
        "acceptance_value": ACCEPT_ALL,
        "minimum_margin": 0,
        "beats_query": False,
        "lazy": False,
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
    some = partial(sampled, pipeline)

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


def sampled(pipeline: Pipeline, table: Artifact, size: int) -> Artifact:
    """Choose some queries, or passages, of a table, once in a run."""
    title, name = f"sample {size} of {table.path}", f"{table.key}/{table.path}"
    try:
        made = pipeline.steps.artifact("sample", name=name)
    except KeyError:
        options = SampleOptions(size=size)
        made = pipeline.step("sample", {"table": table}, title, options=options, name=name)
    return made.at(table.path)
