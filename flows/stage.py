"""Run one stage on a worker; other flows send their stages to work pools this way."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from expandr_core.errors import DataError
from expandr_core.runtime.runner import run_stage, share_stage
from expandr_core.store.specs import read_spec
from tasks.pool_runs import BAD_INPUT
from tasks.progress import core_logs, progress
from tasks.stage import on_this_machine, open_store


@flow(name="stage", flow_run_name="{title}")
def stage(title: str, spec: str, store: str, shares: bool, about: dict[str, Any]) -> State:
    """Make one artifact, or with other runs its shards. Started by other flows, not by people.

    Args:
        title: Title of the step.
        spec: Name of the specification in the store, of what to make.
        store: Folder or s3:// URL that keeps every artifact.
        shares: Make the shards that no other run makes, instead of the whole artifact.
        about: For you to read: stage, seed, options that determine the bytes, and inputs.
    """
    with core_logs(), progress(title) as report:
        try:
            opened = open_store(store)
            todo = on_this_machine(read_spec(opened, spec))
            make = share_stage if shares else run_stage
            make(todo, opened, report)
        except DataError as error:
            return Failed(name=BAD_INPUT, message=str(error))
    return Completed(message=f"{about['stage']}: {todo.key} is in {store}")
