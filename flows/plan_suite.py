"""Plan a suite: what measuring models on datasets will cost, before it is started.

The steps are those of the suite itself, in a pipeline that makes nothing. What a stage costs with a pair
of models is known from earlier runs with it, or from a calibration: the suite in small, on samples of
the largest dataset.
"""

from dataclasses import replace
from datetime import datetime
from functools import partial

import pyarrow.parquet as pq
from prefect import flow

from expandr_core.data.catalog import find_datasets
from expandr_core.options.loop import JointLoopOptions
from expandr_core.planning.cost_model import StepCost, Throughput
from expandr_core.store.run_records import Step
from flows.evaluate_suite import Suite, find_suite, measure_suite, options_of_cost
from flows.model_pairs import MeasuredModels
from flows.plan import PASSAGES_PER_QUERY, Calibration, Plan, learned, predict, sampled
from tasks.comparison import Measured
from tasks.data import Evaluation
from tasks.dry_run import DryRun
from tasks.pipeline import Pipeline


@flow(name="plan-suite")
def plan_suite(
    datasets: tuple[str, ...],
    options: JointLoopOptions,
    models: MeasuredModels,
    seeds: int,
    throughput: Throughput | None = None,
    before: datetime | None = None,
    calibrate: bool = False,
    sample: int = 64,
    store: str = "store",
) -> Plan:
    """Predict the steps of a suite, from scratch; the datasets and the models are made ready for it.

    Args:
        datasets: As for the suite.
        options: As for the suite.
        models: As for the suite.
        seeds: As for the suite.
        throughput: What stages cost; else it is learned from earlier runs, or measured.
        before: Learn from runs that ended before, only; without one there is no prediction.
        calibrate: Measure, even if there are runs to learn from.
        sample: Queries of the larger sample of a calibration; the smaller one has a quarter.
        store: Folder or s3:// URL that keeps every artifact.

    Raises:
        DataError: if a model or a dataset is not there, or there is nothing to predict by.
    """
    pipeline = Pipeline(store, options)
    suite = find_suite(pipeline, find_datasets(datasets), models)
    costs: dict[str, StepCost] = {}  # by key: what several pairs of models share is there once
    used: list[Throughput] = []
    for pair in suite.pairs:
        alone = replace(suite, pairs=[pair])
        known = throughput
        if not known and not calibrate:
            known = learned(pipeline.open(), options_of_cost(pipeline, pair), before)
        make = partial(_measure_samples, suite=alone, seeds=min(seeds, 1))
        measure = partial(Calibration(pipeline, sample).run, make)
        dry_run = partial(_dry_run, pipeline=pipeline, suite=alone, seeds=seeds, costs=costs)
        planned = predict(dry_run, known, measure, fixed=bool(throughput or before))
        costs = planned.predictions
        used += [] if planned.throughput in used else [planned.throughput]
    return Plan(throughputs=used, steps=list(costs.values()))


def _dry_run(
    known: Throughput, pipeline: Pipeline, suite: Suite, seeds: int, costs: dict[str, StepCost]
) -> DryRun:
    """Predict the steps of a suite, those that have a cost already included."""
    planned = DryRun(pipeline.store, pipeline.options, throughput=known, predictions={**costs})
    measure_suite(planned, suite, seeds)
    return planned


def _measure_samples(small: Pipeline, queries: int, suite: Suite, seeds: int) -> list[Step]:
    """Measure a suite on a sample of its largest dataset; return what was made."""
    largest = max(suite.datasets, key=lambda each: _passages(small, each))
    dev = _sample(small, suite.dev, queries) if suite.dev else None
    measure_suite(
        small, replace(suite, datasets=[_sample(small, largest, queries)], dev=dev), seeds
    )
    return list(small.steps)


def _passages(pipeline: Pipeline, measured: Measured) -> int:
    store, corpora = pipeline.open(), [each.corpus for each in measured.subsets.values()]
    return sum(pq.read_metadata(store.local(corpus)).num_rows for corpus in corpora)


def _sample(pipeline: Pipeline, measured: Measured, queries: int) -> Measured:
    """Cut a dataset down to some queries and passages of its first subset."""
    subset, whole = next(iter(measured.subsets.items()))
    small = Evaluation(
        sampled(pipeline, whole.queries, queries),
        whole.qrels,
        sampled(pipeline, whole.corpus, queries * PASSAGES_PER_QUERY),
        whole.identical_ids,
    )
    dataset = measured.dataset.model_copy(update={"subsets": (subset,)})
    return Measured(dataset, {subset: small})
