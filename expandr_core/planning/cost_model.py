"""Predict a run's texts, tokens, hours and disk from what its stages have cost before.

A step has workloads, which its time depends on: tokens to write, passages to encode, pairs to learn.

    seconds = start + the sum of workload / throughput

Start and throughputs are fitted to measured steps of earlier runs, or of a calibration. A stage that
trains tells itself how long its start was. Of another one, steps of about one size tell nothing about
the start: then all the time is put down to the workloads, so that a larger run is not taken for free.
The first step of a stage in a process takes longer, as it loads libraries; a calibration tells how much.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from expandr_core.errors import DataError
from expandr_core.planning.workload import (
    TextStatistics,
    predicted_counts,
    size_count,
    workload,
)
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import Step, StepId
from expandr_core.store.store import Store

Floats = NDArray[np.floating]
VARIED = 2.0  # workloads that differ less tell nothing about the start


class StageThroughput(BaseModel):
    """What a stage costs.

    Attributes:
        start_seconds: of every step, whatever its workload.
        load_seconds: of the first step in a process besides, to load libraries.
        per_second: throughput by workload.
        bytes: written for each of what they grow with (`BYTES_GROW_WITH`), or by every step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    start_seconds: float = 0
    load_seconds: float = 0
    per_second: dict[str, float] = {}
    bytes: float = 0

    def seconds(self, workload: dict[str, float]) -> float:
        """Return what a step of that workload takes, where the libraries are loaded."""
        work = (workload[name] / rate for name, rate in self.per_second.items() if name in workload)
        return self.start_seconds + sum(work)


class Throughput(TextStatistics):
    """What stages cost on a machine, and what their texts are like.

    Attributes:
        stages: by name.
    """

    stages: dict[str, StageThroughput]

    def of(self, stage: str) -> StageThroughput:
        """Return what a stage costs.

        Raises:
            DataError: if that is not known.
        """
        if stage not in self.stages:
            raise DataError(
                f"{self.source} says nothing about the stage {stage!r}; calibrate again, or add it"
            )
        return self.stages[stage]


@dataclass(frozen=True)
class StepCost:
    """What a step of a run costs, measured or predicted.

    Attributes:
        id: of the step in its run.
        counts: what its artifact counts.
        workload: what its time depends on.
        seconds: it took, or takes.
        bytes: it wrote, or writes.
        options: of the stage.
        start: seconds before the work began, if the stage told.
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
    """Read what the steps of a run have cost; each artifact counts once.

    A stage that is cut into shards cost what they did: they may have been made at other times.
    """
    found: dict[str, StepCost] = {}
    for step in steps:
        key = step.artifact.key
        if key not in found:  # what an older version did not count, or is gone, tells nothing
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
    """Leave out a limited step that a later one goes on from: that one has all of its shards."""
    return list({step.id._replace(max_shards=0): step for step in steps}.values())


def predicted(
    step_id: StepId, spec: StageSpec, throughput: Throughput, store: Store, first: bool = False
) -> StepCost:
    """Predict a step, `first` of its stage in a process or not; its inputs may be predictions too.

    Raises:
        DataError: if the throughput says nothing about it.
    """
    counts = predicted_counts(spec, throughput, store)
    options = spec.runtime["options"]
    work = workload(spec.stage, options, spec.inputs, counts, store)
    costs = throughput.of(spec.stage)
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
    """Fit what stages cost to measured steps.

    Args:
        steps: what they cost.
        source: where they are from.
        loading: the same process's steps before, which loaded the libraries.
    """
    by_stage: dict[str, list[StepCost]] = {}
    for step in steps:
        by_stage.setdefault(step.stage, []).append(step)
    texts: dict[str, list[StepCost]] = {}
    for step in by_stage.get("expand", []):
        texts.setdefault(step.options["prompt"]["name"], []).append(step)
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
    names = [name for name in steps[0].workload if any(step.workload[name] for step in steps)]
    seconds = np.array([step.seconds for step in steps])
    if not names:
        return StageThroughput(start_seconds=float(seconds.mean()), bytes=size)
    workloads = np.array([[step.workload[name] for name in names] for step in steps])
    starts = [step.start for step in steps if step.start is not None]
    if len(starts) == len(steps):
        start = float(np.mean(starts))
        costs = _costs(workloads, seconds - starts)
    else:
        start, costs = _start_and_costs(workloads, seconds)
    pairs = zip(names, costs, strict=True)
    per_second = {name: float(1 / cost) for name, cost in pairs if cost > 0}
    return StageThroughput(start_seconds=start, per_second=per_second, bytes=size)


def with_load(throughput: StageThroughput, loading: list[StepCost]) -> StageThroughput:
    """Put down to loading what the first of the steps took longer than by the throughput.

    >>> first = StepCost(StepId("mine"), {}, {"queries": 30.0}, 5.5, 0, {})
    >>> with_load(StageThroughput(start_seconds=1, per_second={"queries": 10}), [first]).load_seconds
    1.5
    """
    more = loading[0].seconds - throughput.seconds(loading[0].workload) if loading else 0
    return throughput.model_copy(update={"load_seconds": max(0.0, more)})


def _start_and_costs(workloads: Floats, seconds: Floats) -> tuple[float, Floats]:
    """Tell the start from the rest, where the workloads differ enough; see `_costs`."""
    always = workloads.min(axis=0) > 0
    varied = workloads.max(axis=0) >= VARIED * workloads.min(axis=0)
    if (varied & always).any():
        start, *costs = _costs(np.column_stack([np.ones(len(seconds)), workloads]), seconds)
        if any(costs):
            return float(start), np.array(costs)
        largest = [int(np.argmax((workloads / workloads.mean(axis=0)).sum(axis=1)))]
        workloads, seconds = (
            workloads[largest],
            seconds[largest],
        )  # it bounds what the workloads can cost
    return 0.0, _costs(workloads, seconds)


def _costs(workloads: Floats, seconds: Floats) -> Floats:
    """Find what one of each workload costs by least squares, weighted by the size of the step.

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
