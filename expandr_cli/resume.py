"""Continue a run of the joint loop that ended early."""

import contextlib
import platform
import re
from datetime import UTC, datetime, timedelta
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

from expandr_cli.runs import state_of
from expandr_cli.temporary_server import run_flow
from expandr_core.errors import DataError
from flows.joint_loop import joint_loop
from flows.run_record import RunRecord, said_of_it
from tasks.stage import open_store

MOST = 200  # runs to look through; Prefect lists no more at once


def resume(out: Console, reference: str, store: str) -> RunRecord | None:
    """Continue a run: on its workers if a deployment started it, otherwise in this process.

    Args:
        out: reports what happens.
        reference: name of the run, in the store or in Prefect, its id there, or "latest".
        store: that the run is of; empty for any.

    Returns:
        The record of the run if it continued in this process.

    Raises:
        DataError: if there is no such run, or it is complete or still active.
    """
    with get_client(sync_client=True) as client:
        run = find_flow_run(client, reference, store)
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
    state = _state_here(run) or state
    if state == "running":
        raise DataError(f"run {run.name} still runs on this machine; wait for it, or interrupt it")
    out.print(f"{run.name} ({run.id}) was {state}; it continues here")
    with said_of_it(run.tags):
        parameters = joint_loop.validate_parameters(run.parameters)
        return RunRecord.model_validate(run_flow(joint_loop, **parameters))


def _state_here(run: FlowRun) -> str:
    """Return the state of a run of this machine; Prefect takes a killed one for running."""
    store = open_store(str(run.parameters["store"]))
    own = [note for note in store.notes() if note.get("flow_run_id") == str(run.id)]
    return next((state_of(note) for note in own if note.get("host") == platform.node()), "")


def find_flow_run(client: SyncPrefectClient, reference: str, store: str) -> FlowRun:
    """Find the latest run of the joint loop with this name or id, of a store unless that is empty."""
    name, until = reference, None
    if of_store := re.fullmatch(r"(\d{8}T\d{6})-(.+)", reference):  # see flows.run_record.run_name
        name = of_store[2]
        started = datetime.strptime(of_store[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
        until = started + timedelta(seconds=1)
    wanted = FlowRunFilter(name=FlowRunFilterName(any_=[name]))
    if reference == "latest":
        wanted = FlowRunFilter()
    with contextlib.suppress(ValueError):
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(reference)]))
    listed = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[joint_loop.name])),
        flow_run_filter=wanted,
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=MOST,
    )
    for run in listed:
        begun = run.start_time or run.expected_start_time
        early = until is None or (begun is not None and begun < until)
        if early and store in ("", run.parameters.get("store")):
            return run
    raise DataError(
        f"there is no run {reference!r} of the joint loop{store and f' in {store}'} on this Prefect "
        "server; `prefect flow-run ls` lists the runs, PREFECT_API_URL names the server"
    )
