"""A pipeline that makes nothing: it predicts every step, and what the step's artifact counts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from expandr_core.planning.cost_model import Rates, StepCost, last_of_each, predicted
from expandr_core.runtime.runner import module_of
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.run_records import StepId
from expandr_core.store.store import Store
from tasks.pipeline import Pipeline

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class DryRun(Pipeline):
    """Predicts the steps of a run; only the data that it starts from is in the store."""

    rates: Rates
    predictions: dict[str, StepCost] = field(default_factory=dict)

    @property
    def costs(self) -> list[StepCost]:
        """What the run would make, each artifact once, in order."""
        return last_of_each(list(self.predictions.values()))

    def make(self, step_id: StepId, title: str, spec: StageSpec) -> Artifact:
        """Predict a step; its artifact has a key, and the counts that later steps depend on."""
        first = all(cost.id.stage != spec.stage for cost in self.predictions.values())
        cost = predicted(step_id, spec, self.rates, self.open(), first)
        self.predictions.setdefault(spec.key, cost)
        files: dict[str, str] = {
            name: spec.key for name in getattr(module_of(spec.stage), "FILES", ())
        }
        return Artifact(key=spec.key, digest=spec.key, files=files, counts=cost.counts)

    def ask(self, question: Callable[[Store], Answer], *, predicted: Answer) -> Answer:
        """Take the prediction: there is no artifact to ask about."""
        return predicted
