"""Find the vectors that the store has already, by the content of their passages.

A passage's vector depends on its content and on what encodes it, not on the corpus around it. So the
shards of an encoding name the content of each passage by a digest, and a later encoding by the same
retriever looks its own contents up there: added and changed passages are encoded, moved ones copied.
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
from expandr_core.store.manifests import DamagedArtifact, flow_run_of, sha256_of
from expandr_core.store.store import Store

log = logging.getLogger(__name__)
VECTORS, PASSAGES = "vectors.npy", "passages.parquet"
DIGEST = pa.binary(16)
Digests = NDArray[np.uint64]
_ENCODINGS = 8  # looked through, at most
_AT_ONCE = 16


def digests_of(contents: Sequence[str]) -> Digests:
    """Return half a SHA-256 of each text; (texts, 2).

    >>> digests = digests_of(["a", "b", "a"])
    >>> digests.shape, (digests[0] == digests[2]).all(), (digests[0] == digests[1]).any()
    ((3, 2), np.True_, np.False_)
    """
    joined = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in contents)
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def write_passages(path: Path, passage_ids: pa.Array, digests: Digests) -> None:
    """Write the rows of a shard: passage_id, and in `content` the digest of what was encoded."""
    content = pa.Array.from_buffers(DIGEST, len(digests), [None, pa.py_buffer(digests.tobytes())])
    table = pa.table({"passage_id": passage_ids, "content": content})
    pq.write_table(table, path, compression="zstd")


def read_digests(path: Path) -> Digests:
    """Read the digests that `write_passages` wrote."""
    column = pq.read_table(path, columns=["content"])["content"].combine_chunks()
    found = np.frombuffer(column.buffers()[1], np.uint64).reshape(-1, 2)
    return found[column.offset : column.offset + len(column)]


class KnownVectors:
    """Where the vectors of some contents are; 32 bytes of memory for each content.

    What has gone or is damaged when it is asked for counts as not known.
    """

    def __init__(self, store: Store, wanted: Digests):
        """Begin with nothing known.

        Args:
            store: where shards are.
            wanted: (passages, 2) the contents that will be asked for; others are not noted.
        """
        self._store = store
        first = np.unique(wanted[:, 0], return_index=True)[1]  # two that share it: one is not noted
        self._wanted = wanted[first]
        self._sorted = self._wanted[:, 0].copy()
        self._shard_of = np.full(len(first), -1, np.int32)
        self._row_of = np.zeros(len(first), np.int32)
        self._shards: list[Artifact] = []
        self._folders: dict[int, Path | None] = {}
        self._held = contextlib.ExitStack()

    def close(self) -> None:
        """Let go of what was downloaded."""
        self._held.close()

    def _places(self, digests: Digests) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return where contents are among the wanted ones, and whether a shard is noted for them."""
        places = np.searchsorted(self._sorted, digests[:, 0])
        places = np.minimum(places, len(self._sorted) - 1)
        known = (self._wanted[places] == digests).all(axis=1) & (self._shard_of[places] >= 0)
        return places, known

    def covers(self, digests: Digests) -> bool:
        """Tell whether all of these contents are known."""
        return bool(self._places(digests)[1].all())

    def add(self, shard: Artifact, digests: Digests) -> None:
        """Note the rows of a shard; what is known already stays where it is."""
        places, known = self._places(digests)
        rows = np.flatnonzero((self._wanted[places] == digests).all(axis=1) & ~known)
        self._shard_of[places[rows]] = len(self._shards)
        self._row_of[places[rows]] = rows
        self._shards.append(shard)

    def add_encodings(self, manifests: Sequence[dict[str, Any]]) -> None:
        """Note the shards of encodings, one after the other, as long as a content is missing."""
        for manifest in manifests:
            if (self._shard_of >= 0).all():
                return
            parts = [Artifact(**part) for part in manifest["parts"]]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for part, digests in zip(parts, pool.map(self._digests_in, parts), strict=True):
                    self.add(part, digests)

    def _digests_in(self, shard: Artifact) -> Digests:
        try:
            path = self._store.local(shard.at(PASSAGES))
            try:
                if sha256_of(path) == shard.files[PASSAGES]:
                    return read_digests(path)
            finally:
                self._store.release(shard)
        except (FileNotFoundError, DamagedArtifact) as error:
            log.info("%s is not reused: %s", shard.key, error)
        return np.empty((0, 2), np.uint64)

    def take(self, digests: Digests) -> tuple[NDArray[Any] | None, NDArray[np.bool_]]:
        """Read the known vectors of some contents.

        Returns:
            Vectors (contents, dimensions), or None if none is known; and which rows are filled.
        """
        places, known = self._places(digests)
        vectors = None
        for number in np.unique(self._shard_of[places[known]]).tolist():
            rows = np.flatnonzero(known & (self._shard_of[places] == number))
            found = self._read(number, self._row_of[places[rows]])
            if found is None:
                known[rows] = False
                continue
            if vectors is None:
                vectors = np.zeros((len(digests), found.shape[1]), found.dtype)
            vectors[rows] = found
        return vectors, known

    def _read(self, number: int, rows: NDArray[np.int32]) -> NDArray[Any] | None:
        """Read rows of a shard, which is checked when it is first read."""
        try:
            if number not in self._folders:
                self._folders[number] = self._open(self._shards[number])
            folder = self._folders[number]
            return folder and np.load(folder / VECTORS, mmap_mode="r")[rows]
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
    """Return the manifests of finished encodings that have a certain file.

    Args:
        store: where to look.
        stage: the stage that made them.
        name: of the file, which says what a vector depends on besides the content.
        sha256: of the file.
        passages: encodings of about so many come first, since they may be of the same corpus; then
            the latest.
        made_by: those of other Prefect flow runs are left out, if it is not empty.
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
        found = [manifest for manifest in pool.map(read, store.keys(f"{stage}-")) if manifest]
    found.sort(key=lambda manifest: manifest["created"], reverse=True)
    found.sort(key=lambda manifest: abs(manifest["counts"]["passages"] - passages))
    return found[:_ENCODINGS]
