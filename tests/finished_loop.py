"""A finished run of the tiny loop, and the states of its tasks."""

from pathlib import Path
from typing import Any, NamedTuple

import tiny_loop
from waiting import wait_until

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import StepId
from flows.run_record import RunRecord


class Finished(NamedTuple):
    """A run of the loop: its record, and the final state's name of each task run by its title."""

    record: RunRecord
    states: dict[str, str]

    @property
    def made(self) -> set[StepId]:
        """The steps that were not found in the store."""
        return {step.id for step in self.record.steps if self.states[step.title] != "Cached"}

    @property
    def digests(self) -> dict[StepId, str]:
        return {step.id: step.artifact.digest for step in self.record.steps}

    def artifact(self, stage: str, round: int = 0, name: str = "") -> Artifact:
        [found] = [step for step in self.record.steps if step.id[:3] == (stage, round, name)]
        return found.artifact


def task_runs(flow_run_id: str, number: int) -> list[Any]:
    """Read the task runs of a flow run; the server writes them down a little later."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort

    runs = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    found = []

    def all_are_over() -> bool:
        nonlocal found
        found = client.read_task_runs(flow_run_filter=runs, sort=TaskRunSort.NAME_ASC, limit=200)
        found = [run for run in found if not run.task_key.startswith("run_branch")]
        return len(found) == number and all(run.state and run.state.is_final() for run in found)

    with get_client(sync_client=True) as client:
        wait_until(all_are_over, f"the end of {number} task runs")
    return found


def finished(store: Path, options: JointLoopOptions = tiny_loop.OPTIONS) -> Finished:
    from flows.joint_loop import joint_loop

    record = joint_loop(options=options, store=str(store))
    runs = task_runs(record.flow_run_id, len(record.steps))
    states = {run.name: run.state_name for run in runs}
    assert states.keys() == {step.title for step in record.steps}
    return Finished(record, states)
