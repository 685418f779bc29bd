"""Records of runs: which artifacts each used, in order. One JSON file each, named by the run.

A run that goes on, or has failed, has a note in the folder NOTES instead.
"""

import json
import logging
from collections.abc import Iterator
from typing import Any

from fsspec import AbstractFileSystem

from expandr_core.errors import DataError

log = logging.getLogger(__name__)
NOTES = "begun"


def write_record(
    filesystem: AbstractFileSystem, folder: str, name: str, record: dict[str, Any]
) -> None:
    """Write a record at once or not at all."""
    filesystem.makedirs(folder, exist_ok=True)
    partial = f"{folder}/.{name}.partial"
    content = json.dumps(record, indent=1, ensure_ascii=False).encode()
    filesystem.pipe_file(partial, content)
    filesystem.mv(partial, f"{folder}/{name}.json")


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
        return dict(json.loads(filesystem.cat_file(path)))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: no record of a run ({error}); restore or delete it") from error


def read_records(filesystem: AbstractFileSystem, folder: str) -> Iterator[dict[str, Any]]:
    """Yield all records, oldest first; a broken one is left out with a warning."""
    for name in record_names(filesystem, folder):
        try:
            yield read_record(filesystem, folder, name)
        except DataError as error:
            log.warning("%s", error)
