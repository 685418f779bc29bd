"""The read cache: downloaded artifacts in the scratch folder, the least recently used removed first.

Artifacts in use are never removed: for each one, its reader locks a byte of the file `in-use`. All
locks share one file descriptor, however many shards are read, and the operating system frees them when
the process ends.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import logging
import os
import shutil
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)


class ReadCache:
    """Downloaded artifacts in one folder, which processes may share."""

    def __init__(self, folder: Path, limit: int | None):
        """Prepare.

        Args:
            folder: for the downloads.
            limit: their total size in bytes; None for no limit.
        """
        self.folder, self.limit = folder, limit
        self._room = 0  # bytes that fit before the folder must be measured again
        self._measuring = threading.Lock()

    def use(self, key: str) -> Path:
        """Protect an artifact's folder until `release` or the end of this process."""
        folder = self.folder / key
        self.folder.mkdir(parents=True, exist_ok=True)
        uses = _uses_of(self.folder)
        with uses.guard:
            uses.counts[key] += 1
            _lock(uses.file, key, fcntl.F_RDLCK, wait=True)
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        return folder

    def release(self, key: str) -> None:
        """Undo one `use` of an artifact's folder."""
        uses = _uses_of(self.folder)
        with uses.guard:
            uses.counts[key] -= 1
            if uses.counts[key] <= 0:
                del uses.counts[key]
                _lock(uses.file, key, fcntl.F_UNLCK)

    def make_room(self, size: int) -> None:
        """Remove the least recently used artifacts until this many bytes fit."""
        with self._measuring:
            if self.limit is None or size == 0:
                return
            self._room -= size
            if self._room < 0:
                self._remove_least_used(self.limit, size)

    def _remove_least_used(self, limit: int, size: int) -> None:
        used = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                if path.is_dir():
                    used.append((path.stat().st_mtime, path.name, size_of(path)))
        total = sum(bytes_ for _, _, bytes_ in used) + size
        for _, key, bytes_ in sorted(used):
            if total > limit and self.remove(key):
                total -= bytes_
        if total > limit:
            log.warning(
                "%s: %.1f GB are in use or requested, more than the limit of %.1f GB",
                *(self.folder, total / 1e9, limit / 1e9),
            )
        # others download too, so look again after a tenth of the limit
        self._room = min(limit - total, limit // 10)

    def remove(self, key: str) -> bool:
        """Remove an artifact's folder unless it is in use; return whether it is gone."""
        with (self.folder / "in-use").open("r+b") as file:
            if not _lock(file, key, fcntl.F_WRLCK):
                return False
            shutil.rmtree(self.folder / key, ignore_errors=True)
            return True


@dataclass
class _Uses:
    """What this process reads; closing the file would release its locks."""

    file: BinaryIO
    counts: Counter[str] = field(default_factory=Counter)
    guard: threading.Lock = field(default_factory=threading.Lock)


_first_use = threading.Lock()


def _uses_of(folder: Path) -> _Uses:
    with _first_use:  # a second file opened meanwhile would be lost, with its locks
        return _open_uses(folder)


@functools.cache
def _open_uses(folder: Path) -> _Uses:
    path = folder / "in-use"
    path.touch()
    return _Uses(path.open("r+b"))


def _lock(file: BinaryIO, key: str, kind: int, wait: bool = False) -> bool:
    """Lock or unlock the byte of a key; return False if others hold it.

    An "open file description lock" belongs to the open file, not to the process, so it also separates
    two users within one process.
    """
    byte = int(hashlib.sha256(key.encode()).hexdigest()[:15], 16)
    request = struct.pack("hhqqi", kind, os.SEEK_SET, byte, 1, 0)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


def size_of(folder: Path) -> int:
    """Return the total bytes of the files below a folder, without those that vanish meanwhile."""
    return sum(size for size, _ in files_below(folder))


def last_change(path: Path) -> float:
    """Return the last change of a file, or of the newest in a folder, in seconds since 1970."""
    return max([path.stat().st_mtime, *(time for _, time in files_below(path))])


def files_below(folder: Path) -> Iterator[tuple[int, float]]:
    """Yield size and last change of each file below a folder, without those that vanish meanwhile."""
    for directory, _, names in os.walk(folder):  # folders that vanish are left out
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(os.path.join(directory, name))
                yield status.st_size, status.st_mtime
