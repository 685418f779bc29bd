"""Records of runs: the artifacts that each used, in order, in a JSON file named after the run.

A run in progress or failed has a note in the folder NOTES instead. Both are read as data: options are
plain values, so that a record stays readable when options are renamed.
"""

import json
import logging
import mimetypes
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from expandr_core.errors import DataError, first_line
from expandr_core.store.artifacts import Artifact
from expandr_core.store.filesystems import STORE_REMEDY, explain_full_disk, partial_file
from expandr_core.store.manifests import is_key

log = logging.getLogger(__name__)
NOTES, REPORTS = "begun", "reports"
SCHEMA = 2  # of records and notes; the first had no number


class StepId(NamedTuple):
    """Identifies a step within a run.

    Attributes:
        stage: that ran.
        round: of the joint loop; 0 outside the rounds.
        name: distinguishes steps of one stage and round.
        max_shards: limit to the first shards; 0 for all. A later step of the same stage, round and name
            continues from them.
    """

    stage: str
    round: int = 0
    name: str = ""
    max_shards: int = 0


class Step(BaseModel):
    """A step of a run: the artifact that it made or found, and a title for people."""

    model_config = ConfigDict(frozen=True)
    id: StepId
    title: str
    artifact: Artifact


class RecordedRun(BaseModel):
    """A record of a run of any flow, written by this version or an earlier one.

    Attributes:
        name: in the store, and for `expandr show`.
        schema_number: of the record's layout.
        kind: the flow, such as "evaluate-suite"; "" is the joint loop.
        report: the comparison of all systems.
        table: of an ablation.
        steps: every step, in order.
        options: as plain values, under the names that they had.
        changed: the options that differed from the defaults of that version; None if not recorded.
        best_round: that is kept; 0 if that is the start.
        models: the best LLM and retriever, the corpus, and perhaps their gate.
    """

    model_config = ConfigDict(frozen=True)
    name: str
    schema_number: int = Field(default=1, alias="schema", le=SCHEMA)
    kind: str = ""
    flow_run_id: str = ""
    started: datetime
    finished: datetime
    report: Artifact
    table: Artifact | None = None
    steps: list[Step]
    preset: str = "none"
    tags: list[str] = []
    options: dict[str, Any] = {}
    changed: dict[str, Any] | None = None
    best_round: int = 0
    models: dict[str, Artifact] = {}

    @field_validator("steps", mode="before")
    @classmethod
    def _older_steps(cls, steps: Any) -> Any:
        """Read the pairs of title and artifact of older records."""
        if not isinstance(steps, list):
            return steps
        return [
            {"id": (each[1]["key"].rpartition("-")[0],), "title": each[0], "artifact": each[1]}
            if isinstance(each, list)
            else each
            for each in steps
        ]


def recorded_run(record: dict[str, Any]) -> RecordedRun:
    """Read a record as data.

    Raises:
        DataError: if a newer version wrote it, or it is no record.
    """
    try:
        return RecordedRun(**record)
    except (ValidationError, LookupError, TypeError) as error:
        name = record.get("name", "?")
        number = record.get("schema", 1)
        if isinstance(number, int) and number > SCHEMA:
            raise DataError(
                f"run {name} was recorded by a newer version (schema {number}, this one reads "
                f"{SCHEMA}); use that version"
            ) from error
        raise DataError(f"run {name}: its record cannot be read ({first_line(error)})") from error


def unfinished(notes: Iterable[dict[str, Any]], name: str) -> str:
    """Say which run of that name has not finished, and why; "" if there is none."""
    found = [note for note in notes if name != "latest" and str(note.get("name")).startswith(name)]
    if not found:
        return ""
    message = f": {found[-1]['message']}" if found[-1].get("message") else ""
    return (
        f"run {found[-1]['name']} has not finished ({found[-1].get('state', '?')}{message}); the "
        "command that started it continues from what was made"
    )


def find_recorded(records: Iterable[dict[str, Any]], name: str) -> RecordedRun | None:
    """Find the last run by the beginning of its name, or the "latest"; of the joint loop, if any is.

    Args:
        records: of a store, oldest first.
        name: or its beginning.

    Raises:
        DataError: if its record cannot be read.
    """
    beginning = "" if name == "latest" else name
    named = [each for each in records if str(each.get("name", "")).startswith(beginning)]
    found = [each for each in named if "kind" not in each] or named
    return recorded_run(found[-1]) if found else None


def write_record(
    filesystem: AbstractFileSystem, folder: str, name: str, record: dict[str, Any]
) -> None:
    """Write a record atomically.

    Raises:
        ValueError: if a number is not finite.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(filesystem, folder, f"{name}.json", text)


def write_text(filesystem: AbstractFileSystem, folder: str, name: str, text: str) -> None:
    """Write a file atomically; make its folder if there is none."""
    path = f"{folder}/{name}"
    if not isinstance(filesystem, LocalFileSystem):
        kind = {"ContentType": mimetypes.guess_type(name)[0] or "text/plain"}  # browsers open it
        filesystem.pipe_file(path, text.encode(), **kind)
        return
    with explain_full_disk(Path(folder), STORE_REMEDY), partial_file(Path(path)) as partial:
        partial.write_text(text, encoding="utf-8")


def record_names(filesystem: AbstractFileSystem, folder: str) -> list[str]:
    """Return the names of all records, oldest first."""
    try:
        paths = filesystem.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    names = sorted(path.rsplit("/", 1)[-1] for path in paths)
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def read_record(filesystem: AbstractFileSystem, folder: str, name: str) -> dict[str, Any]:
    """Return a record.

    Raises:
        DataError: if it cannot be understood.
    """
    path = f"{folder}/{name}.json"
    try:
        record = json.loads(filesystem.cat_file(path))
    except (ValueError, RecursionError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: not a run's record ({error}); restore or delete it") from error
    if not isinstance(record, dict) or not record:
        raise DataError(f"{path}: not a run's record (it is empty); restore or delete it")
    return record


def needs_of(record: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """Return references to the artifacts that a run made or used.

    Raises:
        DataError: if the record does not name them, so that nothing can be safely removed.
    """
    try:
        steps = record["steps"]
        if not isinstance(steps, list):
            raise TypeError("its steps are not a list")
        # older records have a pair of title and artifact for each step
        found = [step[1] if isinstance(step, list) else step["artifact"] for step in steps]
        if not all(is_key(each["key"]) and isinstance(each["digest"], str) for each in found):
            raise ValueError("a step names no artifact")
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: cannot tell which artifacts this run needs ({type(error).__name__}: {error}); "
            "restore the record, delete it if its artifacts may go, or use the version that wrote it"
        ) from error
    return found


def read_records(filesystem: AbstractFileSystem, folder: str) -> Iterator[dict[str, Any]]:
    """Yield all records, oldest first; skip broken ones with a warning."""
    for name in record_names(filesystem, folder):
        try:
            yield read_record(filesystem, folder, name)
        except DataError as error:
            log.warning("%s", error)


def keys_in(value: Any) -> Iterator[str]:
    """Yield the keys of all artifacts in a record or manifest."""
    if isinstance(value, dict):
        if isinstance(value.get("key"), str) and "digest" in value:
            yield value["key"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from keys_in(each)
