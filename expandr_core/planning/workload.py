"""The part of a stage module that `expandr plan` uses, all of it optional.

workload(step)     the quantities that a step's time depends on; without it, constant
predict(step)      the counts of the step's artifact that later steps depend on
BYTES_GROW_WITH    the count that the artifact's size grows with; without it, constant
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from expandr_core.errors import DataError
from expandr_core.runtime.runner import module_of
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store


class UnknownCost(DataError):
    """Something that a plan needs was not measured; a calibration measures it."""


class TextStatistics(BaseModel):
    """Statistics of a run's texts and pairs.

    Attributes:
        source: where the numbers come from.
        tokens_per_text: mean length of a text, by prompt and most new tokens, such as q2d/64.
        accepted_share: share of the rewarded queries that have an acceptable pair.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: str
    tokens_per_text: dict[str, float]
    accepted_share: float = Field(default=1, ge=0, le=1)

    def tokens(self, prompt: str, max_new_tokens: int) -> float:
        """Return the mean length of a prompt's texts of at most so many tokens.

        Raises:
            UnknownCost: if it is not known.
        """
        kind = f"{prompt}/{max_new_tokens}"
        if kind not in self.tokens_per_text:
            raise UnknownCost(
                f"{self.source} has no mean text length for the prompt {prompt!r} with max_new_tokens "
                f"{max_new_tokens}; calibrate again, or add {kind} to tokens_per_text"
            )
        return self.tokens_per_text[kind]


UNKNOWN = TextStatistics(source="nothing", tokens_per_text={})


@dataclass(frozen=True)
class PlannedStep:
    """A step to be planned.

    Attributes:
        options: of the stage's type OPTIONS.
        inputs: artifacts by role; their counts may be predictions.
        store: holds the tables that the run starts from.
        counts: of the step's artifact; empty for `predict`.
        max_shards: limits the step to the first shards; 0 for all.
        texts: statistics of the run's texts; only for `predict`.
    """

    options: Any
    inputs: Mapping[str, Artifact]
    store: Store
    counts: dict[str, float] = field(default_factory=dict)
    max_shards: int = 0
    texts: TextStatistics = UNKNOWN

    def rows(self, role: str) -> int:
        """Count the rows of an input that is a Parquet file."""
        return pq.read_metadata(self.store.local(self.inputs[role])).num_rows

    @property
    def measured_texts(self) -> float:
        """The number of queries and expansions together."""
        expansions = self.inputs.get("expansions")
        return self.counts["queries"] + (expansions.counts["texts"] if expansions else 0)


def workload(
    stage: str,
    options: dict[str, Any],
    inputs: dict[str, Artifact],
    counts: dict[str, float],
    store: Store,
) -> dict[str, float]:
    """Return the quantities that a step's time depends on, by name."""
    module = module_of(stage)
    if not hasattr(module, "workload"):
        return {}
    return module.workload(PlannedStep(module.OPTIONS(**options), inputs, store, counts))


def predicted_counts(spec: StageSpec, texts: TextStatistics, store: Store) -> dict[str, float]:
    """Predict the counts of a step's artifact that later steps depend on."""
    module = module_of(spec.stage)
    if not hasattr(module, "predict"):
        return {}
    options = module.OPTIONS(**spec.runtime["options"])
    step = PlannedStep(options, spec.inputs, store, {}, spec.max_shards, texts)
    return module.predict(step)


def size_count(stage: str) -> str:
    """Return the count that the artifact's size is proportional to; empty if its size is constant."""
    return getattr(module_of(stage), "BYTES_GROW_WITH", "")
