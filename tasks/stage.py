"""The one Prefect task: find a stage's artifact, or make it.

The artifact store is the only truth. The task looks the key up first; what is there and whole is
returned in Prefect's state `Cached`, and the stage does not run. Prefect's own result cache is off: it
would take an unreachable store for a miss, and a deleted artifact for a hit.

Three settings belong to a machine and not to a run, and come from its environment: EXPANDR_SCRATCH, the
local folder for unfinished work and downloads, EXPANDR_CACHE_GB, which the downloads may take, and
EXPANDR_VLLM_PYTHON, the interpreter that has vLLM.
"""

import errno
import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from expandr_core.errors import DataError
from expandr_core.generation.adapters import language_model
from expandr_core.generation.chat_templates import chat_options, find_template
from expandr_core.options.base import Device, Options
from expandr_core.options.generation import ChatOptions, LLMOptions
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.preferences.pairs import settled
from expandr_core.runtime.child import needs_child, run_in_child
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import find, make_spec, run_stage
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store
from tasks.placement import Placement, PoolError, run_on_pool
from tasks.progress import core_logs, only_shown, progress


def _is_worth_retrying(task: Any, run: TaskRun, state: State) -> bool:
    """Retry what the world can break; never what the input or a folder has wrong."""
    error = state.data
    if isinstance(error, PermissionError | NotADirectoryError | IsADirectoryError):
        return False
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return False
    return not isinstance(error, DataError | TypeError | PoolError | ValidationError)


@task(
    name="stage",
    task_run_name="{title}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=[2, 20, 60],
    retry_condition_fn=_is_worth_retrying,
)
def make_artifact(title: str, spec: StageSpec, store_url: str, placement: Placement) -> Any:
    """Return the artifact of a stage: `Cached` if the store has it whole, else made now."""
    with core_logs():
        store = open_store(store_url)
        found = find(spec, store)
        if found:
            message = f"{spec.key} is in the store and whole"
            return Completed(name="Cached", message=message, data=found)
        place = placement.of(spec.stage)
        if place != "here":
            cut = run_on_pool(title, spec, store, place, placement.runs_at_once)
            if cut:  # its shards are there; they are only put together
                return run_stage(spec, store, no_progress)
            found = store.lookup(spec.key)
            if not found:
                raise RuntimeError(f"{spec.key} was made on pool {place} and is not in {store.url}")
            return found
        with progress(title) as report:
            if needs_child(spec):
                return run_in_child(on_this_machine(spec), store, report)
            return run_stage(on_this_machine(spec), store, report)


def open_store(url: str) -> Store:
    """Open a store with this machine's scratch folder and limit of downloads."""
    limit = os.environ.get("EXPANDR_CACHE_GB", "")
    try:
        cache_bytes = int(float(limit) * 1e9) if limit else None
    except (ValueError, OverflowError) as error:
        raise DataError(f"EXPANDR_CACHE_GB={limit}: say a number of gigabytes") from error
    return Store(url, os.environ.get("EXPANDR_SCRATCH"), cache_bytes)


def on_this_machine(spec: StageSpec) -> StageSpec:
    """Add to a stage's runtime what only the machine that runs it knows."""
    python = os.environ.get("EXPANDR_VLLM_PYTHON")
    own = {"vllm_python": python} if python else {}
    return spec.model_copy(update={"runtime": {**spec.runtime, **own}})


class Workspace(BaseModel):
    """Where a run keeps its artifacts, and what it has made so far."""

    model_config = ConfigDict(frozen=True)
    store: str
    seed: int = 0
    placement: Placement = Placement()
    fresh: bool = False
    device: Device = "auto"
    timeout_hours: float = 48
    _made: list[tuple[str, Artifact]] = PrivateAttr(default_factory=list)
    _after_step: list[Callable[[], None]] = PrivateAttr(default_factory=list)

    def after_each_step(self, call: Callable[[], None]) -> None:
        """Call this whenever an artifact has been made or found."""
        self._after_step.append(call)

    @property
    def made(self) -> list[tuple[str, Artifact]]:
        """Titles and artifacts of this run, in order."""
        return self._made

    def make(
        self,
        title: str,
        stage: str,
        options: Options,
        inputs: Mapping[str, Artifact | None] | None = None,
        sources: dict[str, str] | None = None,
        max_shards: int = 0,
    ) -> Artifact:
        """Run a stage as a Prefect task of its own, named by its title; absent inputs are left out.

        Args:
            title: names the step, among all of the run.
            stage: which stage.
            options: of its type OPTIONS.
            inputs: artifacts by role.
            sources: SHA-256 of external files by name.
            max_shards: make only so many shards of a sharded stage; 0 for all.

        Raises:
            DataError: if the input is at fault; it is not retried.
        """
        spec = self.spec(stage, options, inputs, sources, max_shards)
        step = make_artifact.with_options(
            name=stage.replace("_", "-"), timeout_seconds=self.timeout_hours * 3600
        )
        state = step(title, spec, self.store, self.placement, return_state=True)
        artifact = state.result()  # raises what the task raised
        self._made.append((title, artifact))
        for call in self._after_step:
            call()
        return artifact

    def spec(
        self,
        stage: str,
        options: Options,
        inputs: Mapping[str, Artifact | None] | None,
        sources: dict[str, str] | None,
        max_shards: int,
    ) -> StageSpec:
        """Specify a stage of this run; see `make`."""
        fresh = {"fresh": True} if self.fresh else {}
        return make_spec(
            stage,
            options,
            {role: artifact for role, artifact in (inputs or {}).items() if artifact is not None},
            seed=self.seed,
            sources=sources,
            max_shards=max_shards,
            device=self.device,
            prefect_flow_run=_flow_run_id(),
            **fresh,
        )

    def language_model(self, llm: Artifact) -> dict[str, Artifact]:
        """Return what runs a language model, by role: "llm" and, if it is kept apart, its "adapter"."""
        return language_model(self.open(), llm)

    def settled(self, preferences: PreferenceOptions, rewards: Artifact) -> PreferenceOptions:
        """Return the options with the rule of acceptance that suits the encoder of the rewards."""
        return settled(preferences, rewards, self.open())

    def chat(self, llm: Artifact, options: LLMOptions) -> ChatOptions:
        """Return what determines how the model's chat template is rendered.

        Raises:
            DataError: if the template does not read one of the variables of `llm.template`.
        """
        template = find_template(partial(self._read, self.language_model(llm)["llm"]))
        return chat_options(template, options.template, options.date)

    def _read(self, artifact: Artifact, path: str) -> str | None:
        """Read a file of an artifact, if it has one of that name, and fetch no other."""
        if path not in artifact.files:
            return None
        return self.open().local(artifact.at(path)).read_text(encoding="utf-8")

    def read_json(self, artifact: Artifact, path: str) -> Any:
        """Read a JSON file of an artifact."""
        return json.loads((self.open().local(artifact) / path).read_text())

    def publish(self, artifact: Artifact, path: str, name: str) -> None:
        """Show a Markdown file of an artifact in Prefect, under a name."""
        markdown = (self.open().local(artifact) / path).read_text()
        about = f"{artifact.key} in {self.store}"
        with only_shown(name):
            create_markdown_artifact(markdown, key=name, description=about)

    def find(self, reference: str) -> Artifact:
        """Find the artifact KEY, or the file KEY/FILE of one; KEY may be the beginning of a key.

        Raises:
            DataError: if there is none, or several.
        """
        beginning, _, path = reference.partition("/")
        store = self.open()
        keys = [
            key for key in store.keys(beginning) if not key.rpartition("-")[0].endswith("_shard")
        ]
        if len(keys) != 1:
            raise DataError(
                f"{reference!r} is the beginning of {len(keys)} keys in {self.store}; "
                "`expandr show` lists the artifacts of a run"
            )
        artifact = store.lookup(keys[0])
        if artifact is None or (path and path not in artifact.files):
            raise DataError(f"{reference!r} is not in {self.store}, or damaged")
        return artifact.at(path) if path else artifact

    def open(self) -> Store:
        """Open the store."""
        return open_store(self.store)


def _flow_run_id() -> str:
    from prefect.runtime import flow_run

    return str(flow_run.id or "")
