"""Predict the texts, tokens, hours and disk of a run from the cost of earlier steps.

The time of a step depends on its workloads, such as tokens to write, passages to encode or pairs to
train on:

    seconds = start + the sum of workload / throughput

Start and throughputs are fitted to the steps of earlier runs or of a calibration. Stages that load a
model report how long that took. For others, steps of similar size do not separate the start from the
work; all their time then counts as work, so that a larger run is never predicted to cost the same. The
first step of a stage in a process also loads libraries; a calibration measures how long that takes.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, ValidationError

from expandr_core.errors import DataError
from expandr_core.options.loop import JointLoopOptions
from expandr_core.planning.workload import (
    TextStatistics,
    UnknownCost,
    predicted_counts,
    size_count,
    workload,
)
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import Step, StepId
from expandr_core.store.store import Store

Floats = NDArray[np.floating]
COSTLY = ("llm", "retriever", "device")  # groups of options
VARIED = 2.0  # ratio of workloads from which the start can be estimated


class StageThroughput(BaseModel):
    """The cost of a stage.

    Attributes:
        start_seconds: fixed time of every step.
        load_seconds: extra time of the first step in a process, which loads libraries.
        per_second: throughput by workload; None for one that was measured, and took no time.
        bytes: written per unit of `BYTES_GROW_WITH`, or per step if the stage has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    start_seconds: NonNegativeFloat = 0
    load_seconds: NonNegativeFloat = 0
    per_second: dict[str, PositiveFloat | None] = {}
    bytes: NonNegativeFloat = 0

    def seconds(self, workload: dict[str, float]) -> float:
        """Return the time of a step with this workload, with the libraries already loaded."""
        return self.start_seconds + sum(workload[n] / r for n, r in self.per_second.items() if r)


class Throughput(TextStatistics):
    """The cost of each stage on a machine, and statistics of its texts.

    Attributes:
        stages: cost by name of the stage.
    """

    stages: dict[str, StageThroughput]

    def of(self, stage: str) -> StageThroughput:
        """Return the cost of a stage.

        Raises:
            UnknownCost: if it is not known.
        """
        if stage not in self.stages:
            fault = f"{self.source}: no cost of the stage {stage!r}"
            raise UnknownCost(f"{fault}; `--calibrate` measures it")
        return self.stages[stage]


def costly_options(options: JointLoopOptions) -> dict[str, Any]:
    """Return the options that the cost of a step depends on, as plain values."""
    return options.model_dump(mode="json", include={*COSTLY})


def costly_options_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return those of the models that a recorded run used, each once; none if it did not record them."""
    if "kind" not in record:  # a run of the loop
        return [{name: record["options"].get(name) for name in COSTLY}]
    noted = record.get("measured", [])
    return [each for n, each in enumerate(noted) if each not in noted[:n]]


@dataclass(frozen=True)
class StepCost:
    """The measured or predicted cost of a step.

    Attributes:
        id: of the step in its run.
        counts: the counts in its manifest.
        workload: the quantities that its time depends on.
        seconds: its duration.
        bytes: size of its artifact.
        options: of the stage.
        start: seconds before the work began, if the stage reported it.
    """

    id: StepId
    counts: dict[str, float]
    workload: dict[str, float]
    seconds: float
    bytes: float
    options: dict[str, Any] = field(repr=False)
    start: float | None = None

    @property
    def stage(self) -> str:
        """The stage that ran."""
        return self.id.stage


def measured(store: Store, steps: Iterable[Step]) -> list[StepCost]:
    """Read the cost of a run's steps; each artifact counts once.

    A sharded stage costs the sum of its shards, which earlier runs may have made.
    """
    found: dict[str, StepCost] = {}
    for step in steps:
        key = step.artifact.key
        if key not in found:  # skip what is gone, or counted otherwise
            with contextlib.suppress(KeyError, FileNotFoundError, ValidationError):
                found[key] = _measured(store, step)
    return last_of_each(list(found.values()))


def _measured(store: Store, step: Step) -> StepCost:
    artifact = step.artifact
    manifest = store.manifest(artifact.key)
    inputs = {role: Artifact(**each) for role, each in manifest["inputs"].items()}
    parts = [store.manifest(part["key"]) for part in manifest["parts"]]
    options, counts = manifest["options"], manifest["counts"]
    return StepCost(
        id=step.id,
        counts=counts,
        workload=workload(artifact.stage, options, inputs, counts, store),
        seconds=sum(part["seconds"] for part in parts) or manifest["seconds"],
        bytes=sum(file["size"] for each in (manifest, *parts) for file in each["files"]),
        options=options,
        start=manifest.get("start_seconds"),
    )


def last_of_each(steps: list[StepCost]) -> list[StepCost]:
    """Drop a step limited to some shards if a later one continues it and so includes its shards."""
    return list({step.id._replace(max_shards=0): step for step in steps}.values())


def predicted(
    step_id: StepId, spec: StageSpec, throughput: Throughput, store: Store, first: bool = False
) -> StepCost:
    """Predict the cost of a step, whose inputs may be predictions too.

    Args:
        step_id: of the step.
        spec: of the step.
        throughput: of each stage.
        store: holds the tables that the run starts from.
        first: the step is the first of its stage in the process, and loads libraries.

    Raises:
        DataError: UnknownCost if one is lacking; also if one is of a quantity that the stage lacks.
    """
    counts = predicted_counts(spec, throughput, store)
    options = spec.runtime["options"]
    work = workload(spec.stage, options, spec.inputs, counts, store)
    costs = throughput.of(spec.stage)
    if unknown := costs.per_second.keys() - work.keys():
        fault = f"the stage {spec.stage!r} has no {min(unknown)!r}, only {', '.join(work)}"
        raise DataError(f"{throughput.source}: {fault}; calibrate again, or correct per_second")
    return StepCost(
        id=step_id,
        counts=counts,
        workload=work,
        seconds=costs.seconds(work) + first * costs.load_seconds,
        bytes=costs.bytes * counts.get(size_count(spec.stage), 1),
        options=options,
    )


def throughput_of(
    steps: list[StepCost], source: str, loading: Sequence[StepCost] = ()
) -> Throughput:
    """Fit the cost of each stage to measured steps.

    Args:
        steps: the measured steps.
        source: where the measurements come from.
        loading: earlier steps of the same process, which loaded the libraries.
    """
    by_stage: dict[str, list[StepCost]] = {}
    for step in steps:
        by_stage.setdefault(step.stage, []).append(step)
    texts: dict[str, list[StepCost]] = {}
    for step in by_stage.get("expand", []):
        prompt, sampling = step.options["prompt"], step.options["sampling"]
        texts.setdefault(f"{prompt['name']}/{sampling['max_new_tokens']}", []).append(step)
    pairs = [step for step in by_stage.get("pairs", []) if "accepted" in step.counts]
    rewarded = sum(step.counts["queries"] for step in pairs)
    return Throughput(
        source=source,
        stages={
            stage: with_load(fit(stage, own), [step for step in loading if step.stage == stage])
            for stage, own in by_stage.items()
        },
        tokens_per_text={
            prompt: sum(step.counts["tokens"] for step in own)
            / sum(step.counts["texts"] for step in own)
            for prompt, own in texts.items()
        },
        accepted_share=sum(step.counts["accepted"] for step in pairs) / rewarded if rewarded else 1,
    )


def fit(stage: str, steps: list[StepCost]) -> StageThroughput:
    """Fit start and throughputs to the measured steps of a stage, none of them negative.

    >>> def step(tokens, seconds, start=None):
    ...     counts = {"tokens": tokens}
    ...     return StepCost(StepId("expand"), counts, counts, seconds, 4 * tokens, {}, start)
    >>> fit("expand", [step(1000, 7, start=5)])  # 1000 tokens in 2 seconds
    StageThroughput(start_seconds=5.0, load_seconds=0, per_second={'tokens': 500.0}, bytes=4.0)
    >>> found = fit("expand", [step(1000, 7), step(3000, 11)])
    >>> round(found.start_seconds, 6), round(found.per_second["tokens"], 6)
    (5.0, 500.0)
    >>> found = fit("expand", [step(1000, 7), step(1000, 9)])  # one size: 2000 tokens in 16 seconds
    >>> found.start_seconds, round(found.per_second["tokens"], 6)
    (0.0, 125.0)
    """
    grown_by = size_count(stage)
    grown = sum(step.counts.get(grown_by, 1) for step in steps)
    size = sum(step.bytes for step in steps) / max(grown, 1)
    steps = [step for step in steps if step.start is not None] or steps
    names = [name for name in steps[0].workload if any(step.workload[name] for step in steps)]
    seconds = np.array([step.seconds for step in steps])
    if not names:
        return StageThroughput(start_seconds=float(seconds.mean()), bytes=size)
    workloads = np.array([[step.workload[name] for name in names] for step in steps])
    starts = [step.start for step in steps if step.start is not None]
    if starts:
        start = float(np.mean(starts))
        costs = _costs(workloads, seconds - starts)
    else:
        start, costs = _start_and_costs(workloads, seconds)
    pairs = zip(names, costs, strict=True)
    per_second = {name: float(1 / cost) if cost > 0 else None for name, cost in pairs}
    return StageThroughput(start_seconds=start, per_second=per_second, bytes=size)


def with_load(throughput: StageThroughput, loading: list[StepCost]) -> StageThroughput:
    """Attribute to loading the time by which the first step exceeds its predicted duration.

    >>> first = StepCost(StepId("mine"), {}, {"queries": 30.0}, 5.5, 0, {})
    >>> with_load(StageThroughput(start_seconds=1, per_second={"queries": 10}), [first]).load_seconds
    1.5
    """
    more = loading[0].seconds - throughput.seconds(loading[0].workload) if loading else 0
    return throughput.model_copy(update={"load_seconds": max(0.0, more)})


def _start_and_costs(workloads: Floats, seconds: Floats) -> tuple[float, Floats]:
    """Separate the start from the work if the workloads differ enough; see `_costs`."""
    always = workloads.min(axis=0) > 0
    varied = workloads.max(axis=0) >= VARIED * workloads.min(axis=0)
    if (varied & always).any():
        start, *costs = _costs(np.column_stack([np.ones(len(seconds)), workloads]), seconds)
        if any(costs):
            return float(start), np.array(costs)
        largest = [int(np.argmax((workloads / workloads.mean(axis=0)).sum(axis=1)))]
        workloads, seconds = workloads[largest], seconds[largest]  # an upper bound on the costs
    return 0.0, _costs(workloads, seconds)


def _costs(workloads: Floats, seconds: Floats) -> Floats:
    """Fit the cost per unit of each workload by non-negative least squares, weighted by step size.

    Args:
        workloads: (steps, names)
        seconds: (steps,)

    Returns:
        (names,) seconds, none below 0.
    """
    from scipy.optimize import nnls

    mean = workloads.mean(axis=0)
    scaled = workloads / mean
    weights = 1 / np.sqrt(scaled.sum(axis=1).clip(min=1e-9))
    return nnls(scaled * weights[:, None], seconds.clip(min=0) * weights)[0] / mean
