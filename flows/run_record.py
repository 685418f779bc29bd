"""What a run leaves in the store: a note while it goes on, and a record at its end."""

import contextlib
import os
import platform
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from pydantic import BaseModel, ValidationError

from expandr_core.errors import DataError, first_line
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.registry import find_version
from expandr_core.store.run_records import SCHEMA, Step, unfinished
from expandr_core.store.store import Store
from tasks.models import Models
from tasks.pipeline import Pipeline

_SAID: ContextVar[list[str] | None] = ContextVar("said", default=None)


@dataclass(frozen=True)
class Started:
    """A run that goes on.

    Attributes:
        name: in the store, and for `expandr show`.
        at: when it started.
        preset: that it started from.
        tags: of the run in Prefect; `expandr run` notes there which config was changed, and how.
    """

    name: str
    at: datetime
    preset: str
    tags: list[str]


class Record(BaseModel):
    """What a run leaves behind, whatever its flow.

    Attributes:
        name: of the run, in the store and for `expandr show`.
        report: the comparison of all systems.
        steps: every step, in order.
        preset: that it started from.
        tags: of the run in Prefect.
    """

    name: str
    flow_run_id: str
    store: str
    started: datetime
    finished: datetime
    report: Artifact
    steps: list[Step]
    preset: str = "none"
    tags: list[str] = []


class RunRecord(Record):
    """What a run of the joint loop leaves behind.

    Attributes:
        options: of the run.
        best_round: the round that is kept; 0 if that is the start.
        models: the best LLM and retriever, the corpus and, if there are any, their gate and the
            distilled retriever.
    """

    options: JointLoopOptions
    best_round: int
    models: dict[str, Artifact]


def find_run(store: Store, name: str) -> RunRecord | None:
    """Find a run by the beginning of its name, or the latest; None if there is none.

    Raises:
        DataError: if a version with other options recorded it.
    """
    loops = [record for record in store.records() if "kind" not in record]  # others are suites
    latest = name in ("latest", "")
    records = [record for record in loops if latest or record["name"].startswith(name)]
    try:
        return RunRecord(**records[-1]) if records else None
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(
            f"run {records[-1]['name']} was recorded by a version with other options ({field}); use "
            "that version, or run it again: artifacts that did not change are found"
        ) from error


def loop_run(store: Store, name: str) -> RunRecord:
    """Return a run of the joint loop: by alias, by the beginning of its name, or the latest.

    Args:
        store: that has the runs.
        name: ALIAS, MODEL/ALIAS or MODEL/VERSION of a registered model, "latest", or a run's name.

    Raises:
        DataError: if there is none, or the name is another flow's run, which has no best models.
    """
    version = find_version(store, name)
    run = find_run(store, version[1].run if version else name)
    if run:
        return run
    if version:
        raise DataError(
            f"the run {version[1].run} of {name} is not in {store.url} any more; promote another one"
        )
    other = find_other_run(store, name)
    if other:
        raise DataError(
            f"{other['name']} is a run of {other['kind']}, which keeps no best models; name a run of "
            "the joint loop (`expandr runs` lists them)"
        )
    if said := unfinished(store.notes(), name):
        raise DataError(said)
    raise DataError(
        f"there is no run {name!r} in {store.url}; `expandr runs` lists them, `expandr models` the "
        "aliases; `expandr demo` and `expandr run` make one"
    )


def find_other_run(store: Store, name: str) -> dict[str, Any] | None:
    """Find the record of another flow's run by the beginning of its name; its `kind` tells which."""
    others = [record for record in store.records() if "kind" in record]
    named = [record for record in others if record["name"].startswith(name)]
    return named[-1] if named else None


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
def noted(pipeline: Pipeline, flow: str, data: str, preset: str) -> Iterator[Started]:
    """Keep a note of this run in the store until it has a record; if it fails, for good.

    Args:
        pipeline: the run; the note names the artifacts that it has so far.
        flow: which flow runs.
        data: what it works on, for people.
        preset: that it started from.
    """
    now, store, tags = datetime.now(UTC), pipeline.open(), tag_run()
    started = Started(run_name(now), now, preset, tags)
    note = {
        "schema": SCHEMA,
        "name": started.name,
        "flow": flow,
        "flow_run_id": str(flow_run.id),
        "started": now.isoformat(),
        "state": "running",
        "message": "",
        "host": platform.node(),
        "process": os.getpid(),
        "data": data,
        "preset": preset,
        "tags": tags,
    }

    def write() -> None:
        steps = [step.model_dump(mode="json") for step in pipeline.steps]
        store.write_note(started.name, note | {"steps": steps})

    write()
    pipeline.steps.after_each(write)
    try:
        yield started
    except BaseException as error:
        failed = isinstance(error, Exception)
        note["state"] = "failed" if failed else "interrupted"
        note["message"] = first_line(error) if failed else ""
        with contextlib.suppress(Exception):  # the store may be what failed
            write()
        raise
    store.drop_note(started.name)


def end_record(pipeline: Pipeline, started: Started, report: Artifact) -> dict[str, Any]:
    """Return the fields of the record of a run that ends now."""
    record = Record(
        name=started.name,
        flow_run_id=str(flow_run.id),
        store=pipeline.store,
        started=started.at,
        finished=datetime.now(UTC),
        report=report,
        steps=list(pipeline.steps),
        preset=started.preset,
        tags=started.tags,
    )
    return dict(record)


def write_record(pipeline: Pipeline, record: Record, kind: str = "") -> None:
    """Write the record of this run into the store, which keeps what it made from `expandr gc`.

    Args:
        pipeline: of the run.
        record: of it.
        kind: the flow, unless it is the joint loop.
    """
    facts = {
        "schema": SCHEMA,
        "options": pipeline.options.model_dump(mode="json"),
        "changed": pipeline.options.model_dump(mode="json", exclude_defaults=True),
    }
    facts |= record.model_dump(mode="json") | ({"kind": kind} if kind else {})
    pipeline.open().write_record(record.name, facts)


def record_run(
    pipeline: Pipeline, started: Started, report: Artifact, best: Models, corpus: Artifact
) -> RunRecord:
    """Write the record of this run into the store."""
    models = {"llm": best.llm, "retriever": best.retriever, "corpus": corpus}
    added = {"gate": best.gate, "distilled": best.distilled}
    record = RunRecord(
        **end_record(pipeline, started, report),
        options=pipeline.options,
        best_round=best.round,
        models=models | {role: made for role, made in added.items() if made},
    )
    write_record(pipeline, record)
    return record
