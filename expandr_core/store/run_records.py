"""Records of runs: the artifacts that each used, in order, in a JSON file named after the run.

A run in progress or failed has a note in the folder NOTES instead.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict

from expandr_core.errors import DataError
from expandr_core.store.artifacts import Artifact
from expandr_core.store.filesystems import STORE_REMEDY, explain_full_disk, partial_file
from expandr_core.store.manifests import is_key

log = logging.getLogger(__name__)
NOTES = "begun"


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


def write_record(
    filesystem: AbstractFileSystem, folder: str, name: str, record: dict[str, Any]
) -> None:
    """Write a record atomically.

    Raises:
        ValueError: if a number is not finite.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    path = f"{folder}/{name}.json"
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.pipe_file(path, text.encode())
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
