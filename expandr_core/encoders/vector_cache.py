"""Reuse the vectors that the store already has, by the content of their passages.

A passage's vector depends on its content and its encoder, not on the corpus around it. So the shards of
an encoding keep a digest of each passage's content, and later encodings by the same retriever look their
contents up there. They encode only new and changed passages, and copy the vectors of moved ones.
"""

import contextlib
import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expandr_core.store.artifacts import Artifact
from expandr_core.store.manifests import DamagedArtifact, flow_run_of
from expandr_core.store.store import Store
from expandr_core.store.verification import known_sha256

log = logging.getLogger(__name__)
VECTORS, PASSAGES = "vectors.npy", "passages.parquet"
DIGEST = pa.binary(16)
Digests = NDArray[np.uint64]
_MAX_ENCODINGS = 8  # searched
_AT_ONCE = 16  # reads


def digests_of(contents: Sequence[str]) -> Digests:
    """Return half a SHA-256 of each text; (texts, 2).

    >>> digests = digests_of(["a", "b", "a"])
    >>> digests.shape, (digests[0] == digests[2]).all(), (digests[0] == digests[1]).any()
    ((3, 2), np.True_, np.False_)
    """
    joined = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in contents)
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def write_passages(path: Path, passage_ids: pa.Array, digests: Digests) -> None:
    """Write the rows of a shard: `passage_id`, and in `content` the digest of the encoded text."""
    content = pa.Array.from_buffers(DIGEST, len(digests), [None, pa.py_buffer(digests.tobytes())])
    table = pa.table({"passage_id": passage_ids, "content": content})
    pq.write_table(table, path, compression="zstd")


def read_digests(path: Path) -> Digests:
    """Read the digests that `write_passages` wrote."""
    column = pq.read_table(path, columns=["content"])["content"].combine_chunks()
    digests = np.frombuffer(column.buffers()[1], np.uint64).reshape(-1, 2)
    return digests[column.offset : column.offset + len(column)]


class VectorCache:
    """Stored vectors of a set of contents; takes 32 bytes of memory per content.

    Vectors that are missing or damaged when requested are treated as unknown.
    """

    def __init__(self, store: Store, contents: Digests):
        """Start without any vector.

        Args:
            store: where shards are.
            contents: (passages, 2) digests of the contents that may be requested.
        """
        self._store = store
        # Keep the contents sorted by the first half of their digest, to look them up by it. If two
        # contents share that half, one is never cached.
        first = np.unique(contents[:, 0], return_index=True)[1]
        self._contents = contents[first]
        self._sorted = self._contents[:, 0].copy()
        self._shard_of = np.full(len(first), -1, np.int32)  # index in _shards; -1: no vector
        self._row_of = np.zeros(len(first), np.int32)  # row in that shard
        self._shards: list[Artifact] = []
        self._folders: dict[int, Path | None] = {}
        self._held = contextlib.ExitStack()

    def close(self) -> None:
        """Release downloaded shards."""
        self._held.close()

    def _look_up(
        self, digests: Digests
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return positions in `_contents`, whether they are right, and whether they have a vector."""
        positions = np.searchsorted(self._sorted, digests[:, 0])
        positions = np.minimum(positions, len(self._sorted) - 1)
        listed = (self._contents[positions] == digests).all(axis=1)
        return positions, listed, listed & (self._shard_of[positions] >= 0)

    def covers(self, digests: Digests) -> bool:
        """Tell whether all of these contents have a vector."""
        return bool(self._look_up(digests)[2].all())

    def add(self, shard: Artifact, digests: Digests) -> None:
        """Note where the vectors of a shard are, for contents that have none yet."""
        positions, listed, cached = self._look_up(digests)
        rows = np.flatnonzero(listed & ~cached)
        self._shard_of[positions[rows]] = len(self._shards)
        self._row_of[positions[rows]] = rows
        self._shards.append(shard)

    def add_encodings(self, manifests: Sequence[dict[str, Any]]) -> None:
        """Add the shards of encodings, one encoding after the other, until all contents are covered."""
        for manifest in manifests:
            if (self._shard_of >= 0).all():
                return
            shards = [Artifact(**shard) for shard in manifest["parts"]]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for shard, digests in zip(shards, pool.map(self._read_shard, shards), strict=True):
                    self.add(shard, digests)

    def _read_shard(self, shard: Artifact) -> Digests:
        try:
            path = self._store.local(shard.at(PASSAGES))
            try:
                if known_sha256(path) == shard.files[PASSAGES]:
                    return read_digests(path)
            finally:
                self._store.release(shard)
        except (FileNotFoundError, DamagedArtifact) as error:
            log.info("%s is not reused: %s", shard.key, error)
        return np.empty((0, 2), np.uint64)

    def take(self, digests: Digests) -> tuple[NDArray[Any] | None, NDArray[np.bool_]]:
        """Read the cached vectors of some contents.

        Returns:
            Vectors (contents, dimensions), or None if none is cached; and which rows are filled.
        """
        positions, _, cached = self._look_up(digests)
        vectors = None
        for number in np.unique(self._shard_of[positions[cached]]).tolist():
            rows = np.flatnonzero(cached & (self._shard_of[positions] == number))
            read = self._read_rows(number, self._row_of[positions[rows]])
            if read is None:
                cached[rows] = False
                continue
            if vectors is None:
                vectors = np.zeros((len(digests), read.shape[1]), read.dtype)
            vectors[rows] = read
        return vectors, cached

    def _read_rows(self, number: int, rows: NDArray[np.int32]) -> NDArray[Any] | None:
        """Read rows of a shard, which is verified before the first read."""
        try:
            if number not in self._folders:
                self._folders[number] = self._open(self._shards[number])
            folder = self._folders[number]
            return np.load(folder / VECTORS, mmap_mode="r")[rows] if folder else None
        except (FileNotFoundError, DamagedArtifact) as error:
            log.info("%s is not reused: %s", self._shards[number].key, error)
            self._folders[number] = None
            return None

    def _open(self, shard: Artifact) -> Path | None:
        whole = self._store.lookup(shard.key)
        if whole is None:
            return None
        folder = self._store.local(whole)
        self._held.callback(self._store.release, whole)
        return folder


def encodings_with(
    store: Store, stage: str, name: str, sha256: str, passages: int, made_by: str
) -> list[dict[str, Any]]:
    """Return the manifests of finished encodings that contain a given file.

    Args:
        store: where to look.
        stage: the stage that made them.
        name: name of the file, which states what a vector depends on apart from the content.
        sha256: its digest.
        passages: encodings of about this many come first, since they may be of the same corpus; then
            the latest.
        made_by: id of the only Prefect flow run to consider, or "" for all.
    """

    def read(key: str) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError, DamagedArtifact):
            manifest = store.manifest(key)
            files = {file["path"]: file["sha256"] for file in manifest["files"]}
            other = made_by and flow_run_of(manifest) != made_by
            if files.get(name) == sha256 and not other:
                return manifest
        return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        manifests = [manifest for manifest in pool.map(read, store.keys(f"{stage}-")) if manifest]
    manifests.sort(key=lambda manifest: manifest["created"], reverse=True)
    manifests.sort(key=lambda manifest: abs(manifest["counts"]["passages"] - passages))
    return manifests[:_MAX_ENCODINGS]
