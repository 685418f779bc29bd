"""A run of the flow `stage` on a work pool, and its successors if it fails.

Runs have idempotency keys, so a parent that was killed and retried attaches to the run still in
progress, and two parents share one run. If a run ends without the artifact, a new run with the next
number in its key follows: unlike a retry of the same run, it cannot start twice, and late reports about
the dead run cannot affect it. Prefect compares keys across the deployments of a flow, so they include
pool and store.

A run finds its specification in the store: with its inputs it can be larger than Prefect's parameters
may be. What a person wants to know of it is among the parameters, too.
"""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkPool
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as this_flow_run
from prefect.states import Crashed

from expandr_core.errors import DataError
from expandr_core.runtime.runner import only_of
from expandr_core.store.artifacts import StageSpec
from expandr_core.store.specs import write_spec
from expandr_core.store.store import Store

BAD_INPUT = "BadInput"  # name of the failed state that is not retried
ATTEMPTS = 4
STUCK_AFTER = {"process": timedelta(minutes=3)}  # from submission to start
STUCK_IN_CONTAINER_AFTER = timedelta(minutes=35)  # for image pulls and new machines
SHOWN_INPUTS, SHOWN_CHARACTERS = 20, 10_000


class PoolError(RuntimeError):
    """A stage failed on a pool, and so did its retries."""


class PoolRun:
    """One of the runs that make a stage's artifact or its shards, and its successors if it fails."""

    def __init__(
        self, client: SyncPrefectClient, pool: WorkPool, key: str, parameters: dict[str, Any]
    ):
        """Attach to the run in progress, or start one.

        Args:
            client: of Prefect's server.
            pool: whose workers make it.
            key: equal for runs that do the same.
            parameters: of the flow `stage`.
        """
        self.client, self.pool, self.key = client, pool.name, key
        self.title, self.parameters = parameters["title"], parameters
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
        return run.id  # pyrefly: ignore[missing-attribute]

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

    def cancel(self, unless_begun: bool = False) -> None:
        """Cancel the run if this flow run started it; on demand only if no worker has taken it."""
        with contextlib.suppress(ObjectNotFound):
            run = self.client.read_flow_run(self.id)
            if not run.state or run.state.is_final() or not self._is_own(run):
                return
            if run.state.is_scheduled() or not unless_begun:
                self.client.set_flow_run_state(self.id, State(type=StateType.CANCELLING))


def begin(
    client: SyncPrefectClient,
    pool: WorkPool,
    title: str,
    spec: StageSpec,
    store: Store,
    helper: int | None = None,
) -> PoolRun:
    """Begin a run that makes an artifact, or one of those that share its shards.

    Args:
        client: of Prefect's server.
        pool: whose workers make it.
        title: of the step.
        spec: what to make.
        store: where.
        helper: number of the run among those that share the shards; None for one that works alone.
    """
    words = [pool.name, store.url, spec.key, *([] if helper is None else [str(helper)])]
    words += [only_of(spec)] if only_of(spec) else []
    parameters = {
        "title": title if helper is None else f"{title}, run {helper + 1}",
        "spec": write_spec(store, spec),
        "store": store.url,
        "shares": helper is not None,
        "about": _about(spec),
    }
    return PoolRun(client, pool, "/".join(words), parameters)


def _about(spec: StageSpec) -> dict[str, Any]:
    """Say what a run makes, briefly however large the specification is."""
    options = json.dumps(spec.options, ensure_ascii=False)
    short = len(options) <= SHOWN_CHARACTERS
    inputs = {role: artifact.key for role, artifact in spec.inputs.items()}
    more = {"...": f"and {len(inputs) - SHOWN_INPUTS} more"} if len(inputs) > SHOWN_INPUTS else {}
    return {
        "stage": spec.stage,
        "seed": spec.seed,
        "options": spec.options if short else f"{options[:SHOWN_CHARACTERS]} ...",
        "inputs": dict([*inputs.items()][:SHOWN_INPUTS]) | more,
    }
