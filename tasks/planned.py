"""A workspace that makes nothing: every step is predicted, and so are the counts of its artifact."""

from collections.abc import Mapping
from typing import Any

from pydantic import PrivateAttr

from expandr_core.options.base import Options
from expandr_core.options.generation import ChatOptions, LLMOptions
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.planning.cost_model import Rates, Step, last_of_each, predicted
from expandr_core.runtime.runner import make_spec
from expandr_core.store.artifacts import Artifact
from tasks.stage import Workspace

FILES = {"collection_texts": "texts.parquet"}  # what a step reads by name of another one's artifact


class PlannedWorkspace(Workspace):
    """Where a run would keep its artifacts; only the data that it starts from is there."""

    rates: Rates
    _steps: dict[str, Step] = PrivateAttr(default_factory=dict)

    @property
    def steps(self) -> list[Step]:
        """What the run would make, each artifact once, in order."""
        return last_of_each(list(self._steps.values()))

    def make(
        self,
        title: str,
        stage: str,
        options: Options,
        inputs: Mapping[str, Artifact | None] | None = None,
        sources: dict[str, str] | None = None,
        max_shards: int = 0,
    ) -> Artifact:
        """Predict a step; its artifact has a key of its own, and the counts that others depend on."""
        spec = make_spec(
            stage,
            options,
            {role: artifact for role, artifact in (inputs or {}).items() if artifact is not None},
            seed=self.seed,
            sources=sources,
            max_shards=max_shards,
        )
        first = all(step.stage != stage for step in self._steps.values())
        step = predicted(title, spec, self.rates, self.open(), first)
        self._steps.setdefault(spec.key, step)
        files = {FILES[stage]: spec.key} if stage in FILES else {}
        return Artifact(key=spec.key, digest=spec.key, files=files, counts=step.counts)

    def language_model(self, llm: Artifact) -> dict[str, Artifact]:
        """Take an adapter that was not made for the model; it costs the same."""
        return {"llm": llm}

    def settled(self, preferences: PreferenceOptions, rewards: Artifact) -> PreferenceOptions:
        """Leave the rule of acceptance open; the calibration knows which share is accepted."""
        return preferences

    def chat(self, llm: Artifact, options: LLMOptions) -> ChatOptions:
        """Take the variables as they are: no template is there to be asked."""
        return ChatOptions(template=options.template)

    def publish(self, artifact: Artifact, path: str, name: str) -> None:
        """Show nothing: there is nothing to show."""

    def read_json(self, artifact: Artifact, path: str) -> Any:
        """Read a report that was not made: every round brings a gain."""
        return {"contrasts": [{"difference": 1.0, "significant": True}]}
