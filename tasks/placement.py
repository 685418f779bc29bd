"""Where a stage runs: in the flow's process, or as runs of the flow `stage` on a work pool.

Runs on a pool have idempotency keys, so a parent that was killed and retried attaches to the run still
in progress, and two parents share one run. If a run ends without the artifact, a new run with the next
number in its key follows: unlike a retry of the same run, it cannot start twice, and late reports about
the dead run cannot affect it. Prefect compares keys across the deployments of a flow, so they include
pool and store.
"""

import contextlib
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus, WorkPool
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.runtime import flow_run as this_flow_run
from prefect.states import Crashed
from pydantic import Field

from expandr_core.errors import DataError
from expandr_core.options.base import Options, Positive
from expandr_core.runtime.runner import count_shards, module_of, only_of
from expandr_core.store.artifacts import StageSpec
from expandr_core.store.store import Store
from tasks.branches import Stopped, stop_if_asked

Place = Literal["here", "cpu", "gpu-infer", "gpu-train"]
BAD_INPUT = "BadInput"  # name of the failed state that is not retried
ATTEMPTS = 4
POLL_SECONDS = 1.0
LOOK_SECONDS = 10.0  # between checks that the pool has a worker
STUCK_AFTER = {"process": timedelta(minutes=3)}  # from submission to start
STUCK_IN_CONTAINER_AFTER = timedelta(minutes=35)  # for image pulls and new machines


class PoolError(RuntimeError):
    """A stage failed on a pool, and so did its retries."""


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
        Whether the stage was cut into slices; its shards then exist, but not the artifact.

    Raises:
        DataError: if the stage's input is at fault.
        PoolError: if it failed repeatedly for another reason, or was cancelled.
    """
    with get_client(sync_client=True) as client:
        found = _read_pool(client, pool)
        shards = count_shards(spec, store)
        runs = min(shards, runs_at_once, online_workers(client, pool)) if shards > 1 else 1
        slices = [(i, runs) for i in range(runs)] if runs > 1 else [None]
        waiting = [_PoolRun(client, title, spec, store.url, found, each) for each in slices]
        watch = _Watch(client, pool)
        try:
            while waiting:
                stop_if_asked()
                watch.look()
                waiting = [run for run in waiting if not run.is_done()]
                time.sleep(POLL_SECONDS if waiting else 0)
        except (TerminationSignal, Stopped):
            _cancel_with_parent(client, waiting)
            raise
    return runs > 1


def _read_pool(client: SyncPrefectClient, pool: str) -> WorkPool:
    try:
        return client.read_work_pool(pool)
    except ObjectNotFound as error:
        raise DataError(f"there is no work pool {pool!r}; `expandr deploy` creates it") from error


def online_workers(client: SyncPrefectClient, pool: str) -> int:
    """Count the workers of a pool that the server considers online."""
    workers = client.read_workers_for_work_pool(pool, offset=0, limit=200)
    return sum(worker.status == WorkerStatus.ONLINE for worker in workers)


class _Watch:
    """Logs when a pool cannot start runs, and when it can again."""

    def __init__(self, client: SyncPrefectClient, pool: str):
        self.client, self.pool = client, pool
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
        if _read_pool(self.client, self.pool).is_paused:
            return (
                f"work pool {self.pool} is paused, so this run waits; resume the pool with "
                f"expandr drain --resume {self.pool}"
            )
        if not online_workers(self.client, self.pool):
            return (
                f"work pool {self.pool} has no online worker, so this run waits; start one on a machine "
                f"that has ExpandR and reaches the store: {worker_command(self.pool)}"
            )
        return ""


def worker_command(pool: str) -> str:
    """Return the command that starts a worker of a pool; a GPU worker takes one run at a time."""
    return f"prefect worker start --pool {pool}" + (" --limit 1" if pool.startswith("gpu-") else "")


class _PoolRun:
    """A stage or a slice of it, as a run on a pool and its successors if that fails."""

    def __init__(
        self,
        client: SyncPrefectClient,
        title: str,
        spec: StageSpec,
        store: str,
        pool: WorkPool,
        slice: tuple[int, int] | None,
    ):
        self.client, self.pool = client, pool.name
        self.title = title if slice is None else f"{title}, slice {slice[0] + 1} of {slice[1]}"
        self.parameters: dict[str, Any] = {
            "title": self.title,
            "spec": spec.model_dump(mode="json"),
            "store": store,
            "slice": slice,
        }
        words = [self.pool, store, spec.key, *(f"{number}" for number in slice or ())]
        words += [only_of(spec)] if only_of(spec) else []
        self.key = "/".join(words)
        self.number = self.attempts = 0
        self.stuck_after = STUCK_AFTER.get(pool.type, STUCK_IN_CONTAINER_AFTER)
        self.id = self._attach_or_start()

    def _attach_or_start(self) -> UUID:
        """Return the run in progress, or start the next; ended and cancelling runs do not count."""
        while True:
            key = f"{self.key}/{self.number}"
            wanted = FlowRunFilterIdempotencyKey(any_=[key])
            found = self.client.read_flow_runs(
                flow_run_filter=FlowRunFilter(idempotency_key=wanted),
                sort=FlowRunSort.ID_DESC,
                limit=1,
            )
            if not found:
                return self._start(key)
            state = found[0].state
            if state is None or not (state.is_final() or state.is_cancelling()):
                get_run_logger().info("%s: attached to run %r", self.title, found[0].name)
                return found[0].id
            self.number += 1

    def _start(self, key: str) -> UUID:
        self.attempts += 1
        deployment = f"stage/{self.pool}"
        try:
            if self.client.read_deployment_by_name(deployment).work_pool_name != self.pool:
                raise DataError(
                    f"deployment {deployment!r} is not on work pool {self.pool!r}; `expandr deploy` "
                    "puts it there"
                )
            run = run_deployment(
                deployment,
                parameters=self.parameters,
                idempotency_key=key,
                flow_run_name=self.title,
                timeout=0,
            )
        except ObjectNotFound as error:
            raise DataError(
                f"there is no deployment {deployment!r}; `expandr deploy` creates it"
            ) from error
        get_run_logger().info("%s: runs on pool %s", self.title, self.pool)
        return run.id  # pyright: ignore[reportAttributeAccessIssue]

    def is_done(self) -> bool:
        """Check the run; start another one if it failed.

        Raises:
            DataError, PoolError: see `run_on_pool`.
        """
        try:
            run = self.client.read_flow_run(self.id)
        except ObjectNotFound:
            return self._start_another("was deleted")
        if run.state is None or not run.state.is_final():
            self._crash_if_stuck(run)
            return False
        if run.state.is_completed():
            return True
        if run.state.name == BAD_INPUT:
            raise DataError(run.state.message or "the input is at fault")
        if run.state.is_cancelled() and self._is_own(run):
            raise PoolError(f"{self.title}: run {run.name!r} was cancelled; retry to continue")
        return self._start_another(f"is {run.state.name}: {run.state.message}")

    def _start_another(self, end: str) -> Literal[False]:
        if self.attempts >= ATTEMPTS:
            raise PoolError(
                f"{self.title}: {ATTEMPTS} runs on pool {self.pool} failed; the last, "
                f"{self.id}, {end}"
            )
        get_run_logger().warning("%s: run %s %s; starting another", self.title, self.id, end)
        self.id = self._attach_or_start()
        return False

    def _crash_if_stuck(self, run: FlowRun) -> None:
        """Crash a run whose worker died before starting it, or whose pool was deleted.

        An automation does the former too (see deployments/), but misses events while Redis is down. No
        worker ever picks up a run of a deleted pool, even if a new pool has its name.
        """
        taken = run.state and run.state.is_pending() and run.state.timestamp
        message = ""
        if taken and datetime.now(UTC) - taken > self.stuck_after:
            message = f"not started within {self.stuck_after}; its worker is dead"
        if run.state and run.state.is_scheduled() and run.work_pool_name != self.pool:
            message = f"its work pool {self.pool} was deleted"
        if message:
            self.client.set_flow_run_state(run.id, Crashed(message=message), force=True)

    def _is_own(self, run: FlowRun) -> bool:
        """Tell whether this flow run, not another that shares the run, started it."""
        if run.parent_task_run_id is None:
            return False
        parent = self.client.read_task_run(run.parent_task_run_id)
        return str(parent.flow_run_id) == str(this_flow_run.id)

    def cancel(self) -> None:
        """Cancel the run if this flow run started it."""
        with contextlib.suppress(ObjectNotFound):
            run = self.client.read_flow_run(self.id)
            if self._is_own(run) and run.state and not run.state.is_final():
                self.client.set_flow_run_state(self.id, State(type=StateType.CANCELLING))


def _cancel_with_parent(client: SyncPrefectClient, runs: list[_PoolRun]) -> None:
    """Cancel runs on pools if their parent is being cancelled, but not if it was killed."""
    parent = client.read_flow_run(UUID(str(this_flow_run.id)))
    if parent.state and parent.state.type in (StateType.CANCELLING, StateType.CANCELLED):
        for run in runs:
            run.cancel()
