"""A workspace without Prefect: what is made before a server is there, its flow then finds."""

from collections.abc import Mapping

from expandr_core.options.base import Options
from expandr_core.runtime.child import needs_child, run_in_child
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import find, run_stage
from expandr_core.store.artifacts import Artifact
from tasks.stage import Workspace, on_this_machine


class UnobservedWorkspace(Workspace):
    """Makes an artifact at once, in the process that asks or in a child of it."""

    def make(
        self,
        title: str,
        stage: str,
        options: Options,
        inputs: Mapping[str, Artifact | None] | None = None,
        sources: dict[str, str] | None = None,
        max_shards: int = 0,
    ) -> Artifact:
        """Find the artifact of a stage, or make it; see `Workspace.make`."""
        spec = on_this_machine(self.spec(stage, options, inputs, sources, max_shards))
        store = self.open()
        run = run_in_child if needs_child(spec) else run_stage
        return find(spec, store) or run(spec, store, no_progress)
