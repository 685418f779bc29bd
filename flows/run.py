"""A run: what every step of the loop needs, and the record that it leaves behind."""

import contextlib
import os
import platform
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from pydantic import BaseModel, ValidationError

from expandr_core.errors import DataError, first_line
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from tasks.data import Data
from tasks.stage import Workspace

_SAID: ContextVar[list[str] | None] = ContextVar("said", default=None)


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
        preset: that it started from.
        tags: of the run in Prefect; `expandr run` notes there which config was changed, and how.
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
    preset: str = "none"
    tags: list[str] = []


def find_run(store: Store, name: str) -> Summary | None:
    """Find a run by the beginning of its name, or the latest; None if there is none.

    Raises:
        DataError: if a version with other options recorded it.
    """
    loops = [record for record in store.records() if "kind" not in record]  # others are suites
    latest = name in ("latest", "")
    records = [record for record in loops if latest or record["name"].startswith(name)]
    try:
        return Summary(**records[-1]) if records else None
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(
            f"run {records[-1]['name']} was recorded by a version with other options ({field}); use "
            "that version, or run it again: artifacts that did not change are found"
        ) from error


@contextlib.contextmanager
def said_of_it(words: list[str]) -> Iterator[None]:
    """Tag the run that begins meanwhile, and not its tasks: Prefect asks of each tag of a task anew."""
    token = _SAID.set(words)
    try:
        yield
    finally:
        _SAID.reset(token)


def tag_run() -> list[str]:
    """Let Prefect show what was said of this run; return all its tags."""
    said = _SAID.get()
    if not said:
        return list(flow_run.tags)
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(str(flow_run.id)), tags=said)
    return said


def run_name(started: datetime) -> str:
    """Name this flow run as the store does: by time, so that names sort, and as Prefect does."""
    return f"{started:%Y%m%dT%H%M%S}-{flow_run.name}"


@contextlib.contextmanager
def noted(
    work: Workspace, started: datetime, flow: str, data: str, preset: str
) -> Iterator[list[str]]:
    """Keep a note of this run in the store until it has a record; if it fails, for good.

    Args:
        work: where the run keeps its artifacts; the note names those that it has so far.
        started: when.
        flow: which flow runs.
        data: what it works on, for people.
        preset: that it started from.

    Yields:
        The tags of the run.
    """
    name, store, tags = run_name(started), work.open(), tag_run()
    note = {
        "name": name,
        "flow": flow,
        "flow_run_id": str(flow_run.id),
        "started": started.isoformat(),
        "state": "running",
        "message": "",
        "host": platform.node(),
        "process": os.getpid(),
        "data": data,
        "preset": preset,
        "tags": tags,
    }

    def write() -> None:
        steps = [(title, artifact.model_dump(mode="json")) for title, artifact in work.made]
        store.write_note(name, note | {"steps": steps})

    write()
    work.after_each_step(write)
    try:
        yield tags
    except BaseException as error:
        failed = isinstance(error, Exception)
        note["state"] = "failed" if failed else "interrupted"
        note["message"] = first_line(error) if failed else ""
        with contextlib.suppress(Exception):  # the store may be what failed
            write()
        raise
    store.drop_note(name)


def record_run(
    run: Run, report: Artifact, best: Models, started: datetime, preset: str, tags: list[str]
) -> Summary:
    """Write the record of this run into the store."""
    summary = Summary(
        name=run_name(started),
        flow_run_id=str(flow_run.id),
        store=run.work.store,
        started=started,
        finished=datetime.now(UTC),
        options=run.options,
        report=report,
        best_round=best.round,
        models={"llm": best.llm, "retriever": best.retriever, "corpus": run.data.corpus},
        steps=run.work.made,
        preset=preset,
        tags=tags,
    )
    run.work.open().write_record(summary.name, summary.model_dump(mode="json"))
    return summary
