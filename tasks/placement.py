"""Where a stage runs: in the flow's process, or as runs of the flow `stage` on a work pool.

Runs that share the shards of a stage claim them, so their number need not be known when they begin:
more runs start as more workers come online, at most `runs_at_once`. As soon as one of them ends, all
shards are there.
"""

import time
from typing import Literal
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType, WorkerStatus, WorkPool
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError, TerminationSignal
from prefect.runtime import flow_run as this_flow_run
from pydantic import Field

from expandr_core.errors import DataError
from expandr_core.options.base import Options, Positive
from expandr_core.runtime.runner import count_shards, module_of
from expandr_core.store.artifacts import StageSpec
from expandr_core.store.store import Store
from tasks.branches import Stopped, stop_if_asked
from tasks.pool_runs import PoolRun, begin

Place = Literal["here", "cpu", "gpu-infer", "gpu-train"]
POLL_SECONDS = 1.0
LOOK_SECONDS = 10.0  # between checks that the pool has a worker


class Placement(Options):
    """Where each kind of stage runs: in the flow's process ("here"), or on a work pool."""

    data: Place = Field(default="here", description="Reading data, choosing pairs.")
    generate: Place = Field(default="here", description="Writing expansions with the LLM.")
    embed: Place = Field(
        default="here", description="Encoding the corpus, rewards, mining hard negatives."
    )
    measure: Place = Field(default="here", description="Evaluating and comparing systems.")
    train: Place = Field(default="here", description="DPO and the retriever's training.")
    runs_at_once: Positive = Field(
        default=8,
        description="Runs that share the shards of one stage on a pool, at most one per worker.",
    )

    branches: Literal["overlap", "one by one"] = Field(
        default="overlap",
        description="Whether independent branches of the joint loop, such as training the control and "
        "aligning the LLM, may use several pools at once. Stages that run here take turns.",
    )

    @property
    def overlaps(self) -> bool:
        """Whether branches can overlap: some kind of stage runs on a pool."""
        places = (self.data, self.generate, self.embed, self.measure, self.train)
        return self.branches == "overlap" and set(places) != {"here"}

    def of(self, stage: str) -> Place:
        """Return the place of a stage."""
        return getattr(self, module_of(stage).ROLE)


SPREAD = Placement(
    data="here", generate="gpu-infer", embed="gpu-infer", measure="here", train="gpu-train"
)


def run_on_pool(title: str, spec: StageSpec, store: Store, pool: str, runs_at_once: int) -> bool:
    """Run a stage on a work pool and wait for it.

    Returns:
        Whether runs shared the stage's shards; these then exist, but not the artifact.

    Raises:
        DataError: if the stage's input is at fault.
        PoolError: if it failed repeatedly for another reason, or was cancelled.
    """
    with get_client(sync_client=True) as client:
        found = _read_pool(client, pool)
        shards = count_shards(spec, store)
        watch = _Watch(client, pool)
        most = min(shards, runs_at_once)
        runs: list[PoolRun] = []
        try:
            while not any(run.is_done() for run in runs):
                stop_if_asked()
                watch.look()
                wanted = max(1, min(most, len(watch.seen)))
                for number in range(len(runs), wanted):
                    helper = number if shards > 1 else None
                    runs.append(begin(client, found, title, spec, store, helper))
                time.sleep(POLL_SECONDS)
        except (TerminationSignal, Stopped):
            _cancel_with_parent(client, runs)
            raise
        for run in runs:
            run.cancel(unless_begun=True)
    return shards > 1


def _read_pool(client: SyncPrefectClient, pool: str) -> WorkPool:
    try:
        return client.read_work_pool(pool)
    except ObjectNotFound as error:
        raise _no_pool(pool) from error


def _no_pool(pool: str) -> DataError:
    return DataError(f"there is no work pool {pool!r}; `expandr deploy` creates it")


def online_workers(client: SyncPrefectClient, pool: str) -> int:
    """Count the workers of a pool that the server considers online."""
    return len(_online(client, pool))


def _online(client: SyncPrefectClient, pool: str) -> set[str]:
    try:
        workers = client.read_workers_for_work_pool(pool, offset=0, limit=200)
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 404:
            raise
        raise _no_pool(pool) from error
    return {worker.name for worker in workers if worker.status == WorkerStatus.ONLINE}


class _Watch:
    """Sees who works for a pool, and logs when it cannot start runs, and when it can again.

    Attributes:
        seen: the workers that have been online; runs of those that died may still count as running.
    """

    def __init__(self, client: SyncPrefectClient, pool: str):
        self.client, self.pool = client, pool
        self.seen: set[str] = set()
        self.told, self.next = "", 0.0

    def look(self) -> None:
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + LOOK_SECONDS
        trouble = self._trouble()
        if trouble and trouble != self.told:
            get_run_logger().warning(trouble)
        elif self.told and not trouble:
            get_run_logger().info("work pool %s has an online worker", self.pool)
        self.told = trouble

    def _trouble(self) -> str:
        paused = _read_pool(self.client, self.pool).is_paused
        online = _online(self.client, self.pool)
        self.seen |= online
        if paused:
            return (
                f"work pool {self.pool} is paused, so this run waits; resume the pool with "
                f"expandr drain --resume {self.pool}"
            )
        if not online:
            return (
                f"work pool {self.pool} has no online worker, so this run waits; start one on a machine "
                f"that has ExpandR and reaches the store: {worker_command(self.pool)}"
            )
        return ""


def worker_command(pool: str) -> str:
    """Return the command that starts a worker of a pool; a GPU worker takes one run at a time."""
    return f"prefect worker start --pool {pool}" + (" --limit 1" if pool.startswith("gpu-") else "")


def _cancel_with_parent(client: SyncPrefectClient, runs: list[PoolRun]) -> None:
    """Cancel runs on pools if their parent is being cancelled, but not if it was killed."""
    parent = client.read_flow_run(UUID(str(this_flow_run.id)))
    if parent.state and parent.state.type in (StateType.CANCELLING, StateType.CANCELLED):
        for run in runs:
            run.cancel()
