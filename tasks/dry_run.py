"""Pipelines that make nothing: one counts steps; one predicts them, and what their artifacts count."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from expandr_core.planning.cost_model import StepCost, Throughput, last_of_each, predicted
from expandr_core.runtime.runner import module_of
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import StepId
from expandr_core.store.store import Store
from tasks.pipeline import Pipeline

Answer = TypeVar("Answer")


ENOUGH = {  # counts of pairs and of their audit that let a run go on
    **dict.fromkeys(("queries", "accepted", "pairs", "train"), 1e9),
    **dict.fromkeys(("chosen_longer", "rejected_longer", "length_agreement"), 0.0),
    **dict.fromkeys(("length_p", "agreement"), 1.0),
}


@dataclass(frozen=True)
class StepCount(Pipeline):
    """A run of which only the number of steps matters, as if every round took place."""

    def make(self, step_id: StepId, title: str, spec: StageSpec) -> Artifact:
        """Return an artifact that has a key, and no content."""
        names = getattr(module_of(spec.stage), "FILES", ())
        files: dict[str, str] = dict.fromkeys(names, spec.key)
        return Artifact(key=spec.key, digest=spec.key, files=files, counts=ENOUGH)

    def ask(self, question: Callable[[Store], Answer], *, predicted: Answer) -> Answer:
        """Take the prediction: there is no artifact to ask about."""
        return predicted


@dataclass(frozen=True, kw_only=True)
class DryRun(StepCount):
    """Predicts the steps of a run; only the data that it starts from is in the store."""

    throughput: Throughput
    predictions: dict[str, StepCost] = field(default_factory=dict)

    @property
    def costs(self) -> list[StepCost]:
        """What the run would make, each artifact once, in order."""
        return last_of_each(list(self.predictions.values()))

    def make(self, step_id: StepId, title: str, spec: StageSpec) -> Artifact:
        """Predict a step; its artifact has a key, and the counts that later steps depend on."""
        first = all(cost.id.stage != spec.stage for cost in self.predictions.values())
        cost = predicted(step_id, spec, self.throughput, self.open(), first)
        self.predictions.setdefault(spec.key, cost)
        artifact = super().make(step_id, title, spec)
        return artifact.model_copy(update={"counts": cost.counts})
