"""Run one stage on a worker; other flows send their stages to work pools this way."""

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from expandr_core.errors import DataError
from expandr_core.runtime.runner import run_slice, run_stage
from expandr_core.store.artifacts import StageSpec
from tasks.placement import BAD_INPUT
from tasks.progress import core_logs, progress
from tasks.stage import on_this_machine, open_store


@flow(name="stage", flow_run_name="{title}")
def stage(title: str, spec: StageSpec, store: str, slice: tuple[int, int] | None = None) -> State:
    """Make one artifact, or a slice of its shards. Started by other flows, not by people.

    Args:
        title: Title of the step.
        spec: What to make: stage, options, seed, inputs.
        store: Folder or s3:// URL that keeps every artifact.
        slice: (i, n) to make every n-th shard, starting with the i-th; empty for the whole stage.
    """
    with core_logs(), progress(title) as report:
        try:
            opened, spec = open_store(store), on_this_machine(spec)
            if slice:
                run_slice(spec, opened, report, slice)
            else:
                run_stage(spec, opened, report)
        except DataError as error:
            return Failed(name=BAD_INPUT, message=str(error))
    return Completed(message=f"{spec.key} is in {store}")
