"""Verify cache hits: compare an artifact's files with its manifest.

Local files are compared by SHA-256, which a process computes once for a file that stays as it is;
objects on S3 by size and the ETag noted at commit, or by SHA-256 if a copy of the store has another.
"""

import functools
import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expandr_core.store.manifests import DamagedArtifact, sha256_of

if TYPE_CHECKING:
    from expandr_core.store.store import Store

_AT_ONCE = 32
_BLOCK = 1 << 24  # bytes
_MOMENT = 2_000_000_000  # nanoseconds; the coarsest times of a file system


def verified(store: "Store", key: str) -> dict[str, Any]:
    """Return the manifest of an artifact whose files, and those of its shards, are intact.

    Raises:
        FileNotFoundError: if there is no such artifact.
        DamagedArtifact: naming the first file that is missing or changed.
    """
    manifest = intact(store, key)
    below = [(key, part) for part in manifest["parts"]]
    # a digest covers those of its shards and is checked before them, so no cycle can be intact
    while below:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            shards = list(pool.map(lambda each: _intact_shard(store, *each), below))
        deeper = {part["key"]: (each["key"], part) for each in shards for part in each["parts"]}
        below = list(deeper.values())
    return manifest


def _intact_shard(store: "Store", key: str, part: dict[str, Any]) -> dict[str, Any]:
    try:
        manifest = intact(store, part["key"])
    except FileNotFoundError as error:
        raise DamagedArtifact(f"{key}: its shard {part['key']} is missing") from error
    except DamagedArtifact as damage:
        raise DamagedArtifact(f"{key}: its shard {damage}") from damage
    if manifest["digest"] != part["digest"]:
        raise DamagedArtifact(f"{key}: its shard {part['key']} has changed")
    return manifest


def intact(store: "Store", key: str) -> dict[str, Any]:
    """Return the manifest of an artifact whose files, without its shards, are intact.

    If the artifact is rebuilt meanwhile, the new files count.
    """
    manifest = store.manifest(key)
    while True:
        damage = None
        try:
            _check_files(store, manifest)
        except DamagedArtifact as error:
            damage = error
        if not damage and not store.is_local:  # on S3 old files stay
            return manifest
        before, manifest = manifest, store.manifest(key)
        if manifest == before:
            if damage:
                raise damage
            return manifest


def _check_files(store: "Store", manifest: dict[str, Any]) -> None:
    key = manifest["key"]
    for file in manifest["files"]:
        path = store.file(key, manifest["digest"], file["path"])
        try:
            same = _is_same(store, path, file)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedArtifact(f"{key}: {file['path']} is missing") from error
        if not same:
            raise DamagedArtifact(f"{key}: {file['path']} has changed since it was written")
        if store.is_local and not _is_within(path, store.folder(key)):
            raise DamagedArtifact(f"{key}: {file['path']} is a link out of the artifact")


def _is_same(store: "Store", path: str, file: dict[str, Any]) -> bool:
    info: dict[str, Any] = store.filesystem.info(path)
    if info["size"] != file["size"] or info["type"] != "file":
        return False
    if store.is_local:
        return known_sha256(Path(path)) == file["sha256"]
    return info.get("ETag", "") == file.get("etag") or (
        _sha256_of_object(store, path, info["size"]) == file["sha256"]
    )


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file; hash it only once in this process, unless the file has changed.

    A file that changed a moment ago is always hashed: it could change again without a new time.
    """
    stat = path.stat()
    times = stat.st_mtime_ns, stat.st_ctime_ns
    if time.time_ns() - max(times) < _MOMENT:
        return sha256_of(path)
    return _sha256_at(path, stat.st_dev, stat.st_ino, stat.st_size, *times)


@functools.lru_cache(1 << 17)
def _sha256_at(path: Path, *state: int) -> str:
    return sha256_of(path)


def _sha256_of_object(store: "Store", path: str, size: int) -> str:
    """Hash an object whose ETag differs: a copied store may have other part sizes."""
    digest = hashlib.sha256()
    for start in range(0, size, _BLOCK):
        block: Any = store.filesystem.cat_file(path, start=start, end=min(start + _BLOCK, size))
        digest.update(block)
    return digest.hexdigest()


def _is_within(path: str, folder: str) -> bool:
    """Tell whether a file lies in a folder, not behind a link."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())
