"""The one Prefect task: find a stage's artifact, or make it.

The artifact store is the only truth. The task looks the key up first; what is there and whole is
returned in Prefect's state `Cached`, and the stage does not run. Prefect's own result cache is off: it
would take an unreachable store for a miss, and a deleted artifact for a hit.

Three settings belong to a machine and not to a run, and come from its environment: EXPANDR_SCRATCH, the
local folder for unfinished work and downloads, EXPANDR_CACHE_GB, which the downloads may take, and
EXPANDR_VLLM_PYTHON, the interpreter that has vLLM.
"""

import errno
import os
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from pydantic import ValidationError

from expandr_core.errors import DataError
from expandr_core.runtime.child import needs_child, run_in_child
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import find, run_stage
from expandr_core.store.artifacts import StageSpec
from expandr_core.store.store import Store
from tasks.branches import Stopped, stop_if_asked, turn_in_this_process
from tasks.placement import Placement, run_on_pool
from tasks.pool_runs import PoolError
from tasks.progress import core_logs, progress


def _is_worth_retrying(task: Any, run: TaskRun, state: State) -> bool:
    """Retry what the world can break; never what the input or a folder has wrong."""
    error = state.data
    if isinstance(error, PermissionError | NotADirectoryError | IsADirectoryError):
        return False
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return False
    return not isinstance(error, DataError | TypeError | PoolError | Stopped | ValidationError)


@task(
    name="stage",
    task_run_name="{title}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=3,
    retry_delay_seconds=[2, 20, 60],
    retry_condition_fn=_is_worth_retrying,
)
def make_artifact(
    title: str, spec: StageSpec, store_url: str, placement: Placement, position: str = ""
) -> Any:
    """Return the artifact of a stage: `Cached` if the store has it whole, else made now."""
    with core_logs():
        store = open_store(store_url)
        found = find(spec, store)
        if found:
            message = f"{spec.key} is in the store and whole"
            return Completed(name="Cached", message=message, data=found)
        place = placement.of(spec.stage)
        if place != "here":
            shared = run_on_pool(title, spec, store, place, placement.runs_at_once)
            if shared:  # its shards are there; they are only put together
                with turn_in_this_process():
                    return run_stage(spec, store, no_progress)
            found = store.lookup(spec.key)
            if not found:
                raise RuntimeError(f"{spec.key} was made on pool {place} and is not in {store.url}")
            return found
        with turn_in_this_process(), progress(title, position) as show:

            def report(done: int, total: int, unit: str) -> None:
                stop_if_asked()
                show(done, total, unit)

            own = on_this_machine(spec)
            if needs_child(spec):
                return run_in_child(own, store, report, environment=dict(os.environ))
            return run_stage(own, store, report)


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
