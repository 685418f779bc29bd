"""A run: what every step of the loop needs, and the record that it leaves behind."""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from pydantic import BaseModel

from expandr_core.artifacts import Artifact
from expandr_core.options import JointLoopOptions
from tasks.data import Data
from tasks.stage import Workspace


@dataclass(frozen=True)
class Models:
    """The language model and the retriever after a round; round 0 is before the first."""

    round: int
    llm: Artifact
    retriever: Artifact


@dataclass(frozen=True)
class Run:
    """Where artifacts are kept, what the loop works on, and every option."""

    work: Workspace
    data: Data
    options: JointLoopOptions


class Summary(BaseModel):
    """What a run of the joint loop leaves behind.

    Attributes:
        name: of the run, in the store and for `expandr show`.
        report: the comparison of all systems.
        best_round: the round that was best on dev; 0 if none beat the start.
        models: the best LLM and retriever, and the corpus.
        steps: title and artifact of each step, in order.
    """

    name: str
    flow_run_id: str
    store: str
    started: datetime
    finished: datetime
    options: JointLoopOptions
    report: Artifact
    best_round: int
    models: dict[str, Artifact]
    steps: list[tuple[str, Artifact]]


def begun() -> datetime:
    """Return when this flow run was created; retries do not change it."""
    with get_client(sync_client=True) as client:
        created = client.read_flow_run(UUID(str(flow_run.id))).created
    assert created is not None  # the server has it
    return created


def record_run(run: Run, report: Artifact, best: Models, started: datetime) -> Summary:
    """Write the record of this run into the store."""
    summary = Summary(
        name=f"{started:%Y%m%dT%H%M%S}-{flow_run.name}",
        flow_run_id=str(flow_run.id),
        store=run.work.store,
        started=started,
        finished=datetime.now(UTC),
        options=run.options,
        report=report,
        best_round=best.round,
        models={"llm": best.llm, "retriever": best.retriever, "corpus": run.data.corpus},
        steps=run.work.made,
    )
    run.work.open().write_record(summary.name, summary.model_dump(mode="json"))
    return summary
