"""Any stage alone, on a worker: what the other flows send to a work pool."""

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
def stage(title: str, spec: StageSpec, store: str, part: tuple[int, int] | None = None) -> State:
    """Make one artifact, or a part of its shards; other flows start this, people need not.

    Args:
        title: What the step is called.
        spec: What to make: stage, options, seed, inputs.
        store: Folder or s3:// URL that keeps every artifact.
        part: (i, n) to make only each n-th shard, from the i-th on; empty for the whole stage.
    """
    with core_logs(), progress(title) as report:
        try:
            opened, spec = open_store(store), on_this_machine(spec)
            if part:
                run_slice(spec, opened, report, part)
            else:
                run_stage(spec, opened, report)
        except DataError as error:
            return Failed(name=BAD_INPUT, message=str(error))
    return Completed(message=f"{spec.key} is in {store}")
