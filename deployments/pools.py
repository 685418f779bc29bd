"""Work pools: creating them, and draining them before their workers are stopped."""

import json
import time
from collections.abc import Callable
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


def apply_pool(
    client: SyncPrefectClient, name: str, about: str, kind: PoolType, reset: bool
) -> Change:
    """Create a work pool, or leave it as people have set it.

    Raises:
        DataError: if it is there with another type, which cannot be changed.
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
            f"work pool {name!r} is there with type {pool.type}, not {kind}, and a pool cannot change "
            f"its type; drain it, delete it (prefect work-pool delete {name}), and deploy again"
        )
    differs = pool.base_job_template != template
    if differs and reset:
        client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
    kept = ["job template"] if differs and not reset else []
    kept += [f"limit {pool.concurrency_limit}"] if pool.concurrency_limit is not None else []
    kept += ["paused"] if pool.is_paused else []
    return Change("pool", name, *result_of(["job template"] if differs and reset else [], kept))


def job_template(kind: PoolType, pool: str) -> dict[str, Any]:
    """Return the base job template of a pool; the containers of pools for GPUs have one each.

    Raises:
        DataError: if its file is missing.
    """
    if kind == "process":
        return ProcessWorker.get_default_base_job_template()
    path = TEMPLATES / f"{kind}.json"
    if not path.is_file():
        raise DataError(f"{path} is missing; deploy pools of type {kind} from a clone")
    template = json.loads(path.read_text())
    if pool.startswith("gpu-"):
        defaults = json.loads((TEMPLATES / "gpu.json").read_text())[kind]
        for name, value in defaults.items():
            template["variables"]["properties"][name]["default"] = value
    return template


def drain(
    client: SyncPrefectClient, name: str, timeout: float, report: Callable[[str], None]
) -> list[FlowRun]:
    """Pause a pool and wait until no run of it goes on.

    Args:
        client: of the server.
        name: the pool.
        timeout: seconds to wait at most.
        report: is told what is still going on, whenever that changes.

    Returns:
        The runs that still go on; none, unless the time was up.
    """
    set_paused(client, name, True)
    deadline = time.monotonic() + timeout
    before: list[str] | None = None
    while True:
        runs = active_runs(client, name)
        names = sorted(run.name for run in runs)
        if names != before:
            report(f"{name}: {len(runs)} going on" + (f" ({', '.join(names[:5])})" if runs else ""))
        before = names
        if not runs or time.monotonic() >= deadline:
            return runs
        time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def set_paused(client: SyncPrefectClient, name: str, paused: bool) -> None:
    """Pause or un-pause a pool; a paused one starts nothing.

    Raises:
        DataError: if there is no such pool.
    """
    try:
        client.update_work_pool(name, WorkPoolUpdate(is_paused=paused))
    except ObjectNotFound as error:
        there = ", ".join(sorted(pool.name for pool in client.read_work_pools(limit=200))) or "none"
        raise DataError(f"there is no work pool {name!r}; there are: {there}") from error


def active_runs(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    """Return the runs of a pool that a worker has begun and not ended."""
    active = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=active))
        ),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        sort=FlowRunSort.START_TIME_ASC,
        limit=200,
    )
