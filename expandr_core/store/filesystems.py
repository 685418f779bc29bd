"""File systems: a local folder or `s3://`, opened the same way everywhere."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError

from expandr_core.errors import DataError

log = logging.getLogger(__name__)
PARTIAL = ".partial-"  # in the name of a file that is being written
Files = dict[str, tuple[int, datetime]]  # path -> (bytes, last change)


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a folder or URL, and the path in it.

    Raises:
        DataError: if the URL carries credentials, which would end up in manifests and logs.
    """
    if re.match(r"^[a-z0-9]+://[^/]*@", url):
        raise DataError(
            "a URL must not carry credentials; put them into the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a credentials file"
        )
    if url.startswith("s3://"):
        from expandr_core.store.s3 import S3  # slow to import

        return S3(), url.removeprefix("s3://").rstrip("/")
    if "://" not in url:  # literally: `::` chains nothing
        return LocalFileSystem(), str(Path(url).expanduser().absolute()).rstrip("/")
    filesystem, path = fsspec.core.url_to_fs(url)
    return filesystem, path.rstrip("/")


def kind_of(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """Return "file", "directory", or "" if nothing is there.

    fsspec's `exists`, `isfile` and `isdir` also return False for an unreachable server.
    """
    try:
        return filesystem.info(path)["type"]  # pyrefly: ignore[bad-return]
    except FileNotFoundError:
        return ""


def files_below(filesystem: fsspec.AbstractFileSystem, root: str) -> Files:
    """Return all files below a folder, by their paths in it; none if it is missing."""
    if not isinstance(filesystem, LocalFileSystem):
        found: Any = filesystem.find(root, detail=True)
        return {
            path.removeprefix(f"{root}/"): (info["size"], info["LastModified"])
            for path, info in found.items()
        }
    files = {}
    for directory, _, names in os.walk(root, onerror=_unless_missing):
        for path in (Path(directory, name) for name in names):
            with contextlib.suppress(FileNotFoundError):  # a run is in progress
                stat = path.stat()
                changed = datetime.fromtimestamp(stat.st_mtime, UTC)
                files[path.relative_to(root).as_posix()] = stat.st_size, changed
    return files


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


SCRATCH_REMEDY = (
    "free some space there (`expandr gc`), name another scratch folder, or give the read cache a "
    "lower limit"
)
STORE_REMEDY = "free some space there (`expandr gc --delete`), or move the store to a larger disk"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CUT = r"^\d+ requested and \d+ written$|inline_container.*unexpected pos|iostream error"
_NAMED = ": the disk is full"


@contextlib.contextmanager
def explain_full_disk(folder: Path, remedy: str = SCRATCH_REMEDY) -> Iterator[None]:
    """Add the folder and the remedy to errors about a full disk, once."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        code, text = getattr(error, "errno", None), str(error)
        if not code:  # safetensors, numpy, torch, and shutil.Error for a whole folder: only a text
            cut = re.search(_CUT, text)
            code = errno.ENOSPC if cut else next((c for c in _FULL if os.strerror(c) in text), 0)
        if code not in _FULL or _NAMED in text:
            raise
        raise OSError(code, f"{folder}{_NAMED} ({text}); {remedy}") from error


def apply_umask(folder: Path) -> None:
    """Give files the mode that the umask asks for; safetensors makes its files private."""
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def replace_folder(folder: Path, target: Path) -> None:
    """Move a folder to a target atomically, replacing what is there.

    Raises:
        OSError: naming the disk if it is full; the former folder stays, and nothing partial does.
    """
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    former = beside.with_name(f"{beside.name}.former")
    try:
        with explain_full_disk(target.parent, STORE_REMEDY):
            target.parent.mkdir(parents=True, exist_ok=True)
            _move(folder, beside)
            with contextlib.suppress(FileNotFoundError):
                target.rename(former)
            beside.rename(target)
    except BaseException:
        if former.is_dir() and not target.exists():
            former.rename(target)
        if not folder.exists() and beside.exists():
            _move(beside, folder)  # for another attempt
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if former.is_symlink():  # its target is not ours
        former.unlink()
    shutil.rmtree(former, ignore_errors=True)


def _move(folder: Path, target: Path) -> None:
    """Move a folder, even to another disk."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(folder, target)
        shutil.rmtree(folder)


@contextlib.contextmanager
def flock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a file among the processes of this machine; yield False if another holds it.

    The operating system frees it when its holder dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                log.info("%s is being made by another process; waiting for it", path.name)
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(path, os.fstat(file.fileno())):
                try:
                    yield True
                finally:
                    path.unlink(missing_ok=True)  # waiters notice, and start over
                return


def _is_at(path: Path, stat: os.stat_result) -> bool:
    """Tell whether the file is still there; its former holder removes it."""
    try:
        return os.path.samestat(stat, path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def partial_file(target: Path) -> Iterator[Path]:
    """Yield a path beside the target to write to; rename it to the target on success."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}{PARTIAL}{uuid.uuid4().hex}")
    try:
        yield partial
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
