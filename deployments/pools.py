"""Work pools: create them, and drain them before stopping their workers."""

import contextlib
import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from deployments.changes import Change, result_of
from deployments.plan import PoolType
from expandr_core.errors import DataError

TEMPLATES = Path(__file__).parent.parent / "infra" / "job-templates"
POLL_SECONDS = 2.0
HEARTBEAT = (
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"  # seconds; Prefect's own 180 find a dead run too late
)
HEARTBEAT_SECONDS = 30


def apply_pool(
    client: SyncPrefectClient, name: str, about: str, kind: PoolType, reset: bool
) -> Change:
    """Create a work pool, or keep people's settings but add a heartbeat if there is none.

    Raises:
        DataError: if it exists with another type, which cannot be changed.
    """
    template = job_template(kind, name)
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(
            WorkPoolCreate(name=name, type=kind, description=about, base_job_template=template)
        )
        return Change("pool", name, "created", f"type {kind}")
    if pool.type != kind:
        raise DataError(
            f"work pool {name!r} exists with type {pool.type}, not {kind}, and a pool cannot change "
            f"its type; drain it, delete it (prefect work-pool delete {name}), and deploy again"
        )
    ours = reset or not pool.base_job_template
    wanted = template if ours else _with_heartbeat(pool.base_job_template)
    updated = [] if pool.base_job_template == wanted else ["job template"]
    if updated:
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=wanted))
    kept = ["job template"] if wanted != template else []
    kept += [f"limit {pool.concurrency_limit}"] if pool.concurrency_limit is not None else []
    kept += ["paused"] if pool.is_paused else []
    return Change("pool", name, *result_of(updated, kept))


def job_template(kind: PoolType, pool: str) -> dict[str, Any]:
    """Return the base job template of a pool; containers of GPU pools get one GPU each.

    Raises:
        DataError: if its file is missing.
    """
    if kind == "process":
        return _with_heartbeat(ProcessWorker.get_default_base_job_template())
    path = TEMPLATES / f"{kind}.json"
    if not path.is_file():
        raise DataError(f"{path} is missing; deploy pools of type {kind} from a clone")
    template = json.loads(path.read_text())
    if pool.startswith("gpu-"):
        defaults = json.loads((TEMPLATES / "gpu.json").read_text())[kind]
        for name, value in defaults.items():
            template["variables"]["properties"][name]["default"] = value
    return _with_heartbeat(template)


def _with_heartbeat(template: dict[str, Any]) -> dict[str, Any]:
    """Copy a job template, with a heartbeat frequency if it has none."""
    template = json.loads(json.dumps(template))
    environment = _environment(template)
    environment.setdefault(HEARTBEAT, str(HEARTBEAT_SECONDS))
    properties = template.setdefault("variables", {}).setdefault("properties", {})
    properties.setdefault("env", {"type": "object"})["default"] = environment
    return template


def _environment(template: dict[str, Any]) -> dict[str, str | None]:
    """Return the default environment of a template's jobs."""
    properties = template.get("variables", {}).get("properties", {})
    return dict(properties.get("env", {}).get("default") or {})


def check_dead_after(
    client: SyncPrefectClient, pools: list[str], dead_after: timedelta, reset: bool
) -> None:
    """Check that one or two late heartbeats do not make a run count as dead.

    Raises:
        DataError: if `dead_after` is shorter than three heartbeats of a pool.
    """
    for name in pools:
        seconds: Any = HEARTBEAT_SECONDS
        with contextlib.suppress(ObjectNotFound):
            there = _with_heartbeat(client.read_work_pool(name).base_job_template)
            if not reset:
                seconds = _environment(there)[HEARTBEAT]
        try:
            needed = 3 * int(seconds)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"work pool {name!r}: {HEARTBEAT} in its job template is {seconds!r}; give a number of "
                "seconds in the UI, or restore ours with `expandr deploy --reset`"
            ) from error
        if dead_after.total_seconds() < needed:
            raise DataError(
                f"--dead-after {dead_after.total_seconds():g}: runs on pool {name!r} send a heartbeat "
                f"every {seconds} seconds, and healthy ones would count as dead; give {needed} or more"
            )


def drain(
    client: SyncPrefectClient, name: str, timeout: float, report: Callable[[str], None]
) -> list[FlowRun]:
    """Pause a pool and wait until its runs have ended.

    Args:
        client: of the server.
        name: of the pool.
        timeout: in seconds.
        report: called with the active runs whenever they change.

    Returns:
        The runs still active after the timeout.
    """
    set_paused(client, name, True)
    deadline = time.monotonic() + timeout
    before: list[str] | None = None
    while True:
        runs = active_runs(client, name)
        names = sorted(run.name for run in runs)
        if names != before:
            report(f"{name}: {len(runs)} active" + (f" ({', '.join(names[:5])})" if runs else ""))
        before = names
        if not runs or time.monotonic() >= deadline:
            return runs
        time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def set_paused(client: SyncPrefectClient, name: str, paused: bool) -> None:
    """Pause or un-pause a pool; a paused pool starts nothing.

    Raises:
        DataError: if there is no such pool.
    """
    try:
        client.update_work_pool(name, WorkPoolUpdate(is_paused=paused))
    except ObjectNotFound as error:
        there = ", ".join(sorted(pool.name for pool in client.read_work_pools(limit=200))) or "none"
        raise DataError(f"there is no work pool {name!r}; there are: {there}") from error


def active_runs(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    """Return the runs of a pool that a worker has picked up and not finished."""
    active = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=active))
        ),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        sort=FlowRunSort.START_TIME_ASC,
        limit=200,
    )
