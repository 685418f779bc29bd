"""Continue a run of the joint loop that ended early."""

import contextlib
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import AwaitingRetry
from rich.console import Console

from expandr_cli.temporary_server import run_flow
from expandr_core.errors import DataError
from flows.joint_loop import joint_loop
from flows.run_record import RunRecord, said_of_it


def resume(out: Console, reference: str) -> RunRecord | None:
    """Continue a run: on its workers if a deployment started it, otherwise in this process.

    Args:
        out: reports what happens.
        reference: name or id of the run in Prefect, or "latest".

    Returns:
        The record of the run if it continued in this process.

    Raises:
        DataError: if there is no such run, or it is complete or still active.
    """
    with get_client(sync_client=True) as client:
        run = _find(client, reference)
        state = run.state_name or "unknown"
        if run.state and run.state.is_completed():
            raise DataError(f"run {run.name} is {state}; there is nothing left to do")
        if run.deployment_id:
            if run.state and not run.state.is_final():
                raise DataError(
                    f"run {run.name} is {state} and continues by itself; cancel it first"
                )
            client.set_flow_run_state(
                run.id, AwaitingRetry(scheduled_time=datetime.now(UTC)), force=True
            )
            out.print(f"{run.name} ({run.id}) was {state}; it now waits for a worker of its pool")
            return None
    out.print(f"{run.name} ({run.id}) is {state}; it continues here")
    with said_of_it(run.tags):
        parameters = joint_loop.validate_parameters(run.parameters)
        return RunRecord.model_validate(run_flow(joint_loop, **parameters))


def _find(client: SyncPrefectClient, reference: str) -> FlowRun:
    """Find the latest run of the joint loop with this name or id."""
    wanted = FlowRunFilter(name=FlowRunFilterName(any_=[reference]))
    if reference == "latest":
        wanted = FlowRunFilter()
    with contextlib.suppress(ValueError):
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(reference)]))
    found = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[joint_loop.name])),
        flow_run_filter=wanted,
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=1,
    )
    if not found:
        raise DataError(
            f"there is no run {reference!r} of the joint loop on this Prefect server; "
            "`prefect flow-run ls` lists the runs, PREFECT_API_URL names the server"
        )
    return found[0]
