"""Records of runs: which artifacts each used, in order. One JSON file each, named by the run.

A run that goes on, or has failed, has a note in the folder NOTES instead.
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
    """Which step of a run: unique within it.

    Attributes:
        stage: that ran.
        round: of the joint loop; 0 outside of the rounds.
        name: tells steps of one stage and round apart.
        max_shards: the step was limited to the first shards; 0 for all. A later step of the same
            stage, round and name goes on from it.
    """

    stage: str
    round: int = 0
    name: str = ""
    max_shards: int = 0


class Step(BaseModel):
    """A step of a run: what it made or found, and its title, which is only for people."""

    model_config = ConfigDict(frozen=True)
    id: StepId
    title: str
    artifact: Artifact


def write_record(
    filesystem: AbstractFileSystem, folder: str, name: str, record: dict[str, Any]
) -> None:
    """Write a record at once or not at all.

    Raises:
        ValueError: if it holds a number that is not finite.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    path = f"{folder}/{name}.json"
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.pipe_file(path, text.encode())
        return
    with explain_full_disk(Path(folder), STORE_REMEDY), partial_file(Path(path)) as partial:
        partial.write_text(text, encoding="utf-8")


def record_names(filesystem: AbstractFileSystem, folder: str) -> list[str]:
    """Return the names of all records, in their order, which is that of time."""
    try:
        paths = filesystem.ls(folder, detail=False)
    except FileNotFoundError:
        return []
    names = sorted(path.rsplit("/", 1)[-1] for path in paths)
    return [name.removesuffix(".json") for name in names if name.endswith(".json")]


def read_record(filesystem: AbstractFileSystem, folder: str, name: str) -> dict[str, Any]:
    """Return a record.

    Raises:
        DataError: if it is not what was written.
    """
    path = f"{folder}/{name}.json"
    try:
        record = json.loads(filesystem.cat_file(path))
    except (ValueError, RecursionError, IsADirectoryError, PermissionError) as error:
        raise DataError(f"{path}: no record of a run ({error}); restore or delete it") from error
    if not isinstance(record, dict) or not record:
        raise DataError(f"{path}: no record of a run (it holds no facts); restore or delete it")
    return record


def needs_of(record: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """Return the artifacts that a run made and used, as its steps name them.

    Raises:
        DataError: if the record does not tell, so that nobody knows what may go.
    """
    try:
        steps = record["steps"]
        if not isinstance(steps, list):
            raise TypeError("its steps are no list")
        # older records have a pair of title and artifact for each step
        found = [step[1] if isinstance(step, list) else step["artifact"] for step in steps]
        if not all(is_key(each["key"]) and isinstance(each["digest"], str) for each in found):
            raise ValueError("a step names no artifact")
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: what this run needs is not understood ({type(error).__name__}: {error}); restore "
            "the record, delete it if its artifacts may go, or use the version that wrote it"
        ) from error
    return found


def read_records(filesystem: AbstractFileSystem, folder: str) -> Iterator[dict[str, Any]]:
    """Yield all records, oldest first; a broken one is left out with a warning."""
    for name in record_names(filesystem, folder):
        try:
            yield read_record(filesystem, folder, name)
        except DataError as error:
            log.warning("%s", error)
