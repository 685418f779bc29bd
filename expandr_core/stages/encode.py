"""Encode a corpus with the retriever; passages that it has encoded before are not encoded again.

Inputs: `retriever` (a model folder), `corpus` (a corpus.parquet). The shards are chunks of the corpus,
in its order. Each holds vectors.npy, (passages, dimensions), and passages.parquet with the passage_id of
each row and a digest of its content; `retrieval.exact.open_index` reads them together. The artifact
itself holds encoder.json, which states what a vector depends on apart from the content of its passage.

If another encoding has the same encoder.json, its vectors are copied, whatever its corpus and order.
A content that occurs twice is encoded once. The manifest counts passages as `encoded` and `reused`.
Memory holds less than 200 bytes per passage, not its text.

The artifact's key does not name the encodings that vectors were copied from: these may differ between
stores, and between workers that share the shards. With them differs only how texts were batched, hence
the last bits of vectors, as with another batch size or machine; ids, order and content never differ. A
shard owns its copies, so it keeps no other artifact alive.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.encoders.encode import Encoder, encoder_of
from expandr_core.encoders.vector_cache import (
    PASSAGES,
    VECTORS,
    Digests,
    VectorCache,
    digests_of,
    encodings_with,
    write_passages,
)
from expandr_core.errors import DataError
from expandr_core.options.base import Options
from expandr_core.options.retriever import (
    EncodingOptions,
    IndexOptions,
    RetrieverOptions,
    VectorType,
)
from expandr_core.planning.workload import PlannedStep
from expandr_core.records import Passage, passages_in
from expandr_core.runtime.job import Job
from expandr_core.runtime.runner import only_of, run_shard

VERSION = 6
ROLE = "embed"
ISOLATION = "on-gpu"
PASSAGES_PER_SHARD = 8192
ENCODER = "encoder.json"


class EncodeOptions(Options):
    """How passages are encoded, and how their vectors are kept."""

    encoding: EncodingOptions
    index: IndexOptions = IndexOptions()

    @classmethod
    def of(cls, options: RetrieverOptions) -> Self:
        """Encode for this retriever's index."""
        return cls(encoding=options.encoding, index=options.index)


OPTIONS = EncodeOptions
BYTES_GROW_WITH = "passages"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the passages that no earlier encoding has."""
    return {"passages": step.counts["encoded"]}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every passage is encoded."""
    passages = step.rows("corpus")
    return {"passages": passages, "encoded": passages}


def shards(job: Job) -> int:
    """Count the chunks of the corpus."""
    passages = pq.read_metadata(job.inputs["corpus"]).num_rows
    if not passages:
        raise DataError("the corpus has no passages; there is nothing to search")
    return -(-passages // PASSAGES_PER_SHARD)


def run(job: Job) -> None:
    """Encode each chunk of the corpus whose shard is missing."""
    count = shards(job)
    options: EncodeOptions = job.options

    @cache
    def encoder() -> Encoder:  # load it if a vector is missing
        loaded = encoder_of(job, options.encoding)
        job.progress(len(job.made_shards), count, "shards")
        return loaded

    job.counts |= {"passages": 0, "encoded": 0, "reused": 0}
    contents = np.concatenate([digests_of(_contents(rows)) for rows in _batches(job)])
    with closing(_cached_vectors(job, contents)) as cached:
        for number, rows in enumerate(_batches(job)):
            own, contents = np.split(contents, [len(rows)])
            if job.takes(number):
                _make_shard(job, Chunk(number, rows, own), cached, encoder)
            job.progress(number + 1, count, "shards")
    (job.out / ENCODER).write_text(_describe_encoder(job))


def _describe_encoder(job: Job) -> str:
    """State what a vector depends on apart from the content of its passage."""
    spec = job.spec
    retriever = spec.inputs["retriever"].digest
    encoder = {"version": spec.version, "retriever": retriever, "options": spec.options}
    return json.dumps(encoder, indent=1, sort_keys=True, allow_nan=False)


def _cached_vectors(job: Job, contents: Digests) -> VectorCache:
    """Look up the contents of the corpus in earlier encodings."""
    cached = VectorCache(job.store, contents)
    earlier = encodings_with(
        job.store,
        job.spec.stage,
        ENCODER,
        hashlib.sha256(_describe_encoder(job).encode()).hexdigest(),
        len(contents),
        only_of(job.spec),
    )
    cached.add_encodings(earlier)
    return cached


def _batches(job: Job) -> Iterator[pa.RecordBatch]:
    """Read the corpus, a batch for each shard."""
    columns = list(Passage._fields)
    yield from pq.ParquetFile(job.inputs["corpus"]).iter_batches(
        PASSAGES_PER_SHARD, columns=columns
    )


def _contents(rows: pa.RecordBatch) -> list[str]:
    return [passage.content for passage in passages_in(rows)]


class Chunk(NamedTuple):
    """Some passages of the corpus: the number of their shard, their rows and their contents' digests."""

    number: int
    rows: pa.RecordBatch
    digests: Digests

    @property
    def passage_ids(self) -> pa.Array:
        """Return the id of each passage."""
        return self.rows["passage_id"]

    @property
    def digest(self) -> str:
        """SHA-256 of ids and contents."""
        ids = json.dumps(self.passage_ids.to_pylist()).encode()
        return hashlib.sha256(ids + self.digests.tobytes()).hexdigest()


def _make_shard(
    job: Job, chunk: Chunk, cached: VectorCache, encoder: Callable[[], Encoder]
) -> None:
    """Make the shard of a chunk if it is missing, and count what was encoded for it."""
    covered = cached.covers(chunk.digests)
    made = False

    def write(out: Path) -> dict[str, float]:
        nonlocal made
        made = True
        return _write_shard(job, chunk, out, cached, encoder)

    shard = run_shard(job, chunk.number, {"corpus": chunk.digest}, write)
    cached.add(shard, chunk.digests)
    # An existing shard was made by this encoding before a kill, by another worker, or earlier; only
    # in the last case was it covered before.
    encoded = 0 if covered and not made else shard.counts["encoded"]
    job.counts["passages"] += len(chunk.digests)
    job.counts["encoded"] += encoded
    job.counts["reused"] += len(chunk.digests) - encoded
    job.counts["dimensions"] = shard.counts["dimensions"]


def _write_shard(
    job: Job, chunk: Chunk, out: Path, cached: VectorCache, encoder: Callable[[], Encoder]
) -> dict[str, float]:
    """Copy cached vectors, encode each remaining content once, and write all in order."""
    vectors, there = cached.take(chunk.digests)
    missing = np.flatnonzero(~there)
    encoded = 0
    if len(missing):
        _, first, which = np.unique(
            chunk.digests[missing], axis=0, return_index=True, return_inverse=True
        )
        encoded = len(first)
        contents = _contents(chunk.rows)
        texts = [contents[row] for row in missing[first]]
        options: EncodeOptions = job.options
        new = _stored(encoder().encode_passages(texts), options.index.vector_type)
        if vectors is None:
            vectors = np.empty((len(there), new.shape[1]), new.dtype)
        vectors[missing] = new[which]
    assert vectors is not None
    np.save(out / VECTORS, vectors)
    write_passages(out / PASSAGES, chunk.passage_ids, chunk.digests)
    return {
        "passages": len(there),
        "encoded": encoded,
        "reused": len(there) - encoded,
        "dimensions": vectors.shape[1],
    }


def _stored(vectors: np.ndarray, vector_type: VectorType) -> np.ndarray:
    """Convert vectors to the type in which they are stored.

    Raises:
        DataError: if they are not finite, or too large for the type.
    """
    if not np.isfinite(vectors).all():
        raise DataError(
            "the retriever's vectors are not finite numbers; it may have diverged in "
            "training: lower its learning rate"
        )
    with np.errstate(over="ignore"):
        stored = vectors.astype(vector_type)
    if not np.isfinite(stored).all():
        raise DataError(
            f"a vector has a component of {np.abs(vectors).max():g}, but float16 ends at 65504; set "
            "retriever.index.vector_type to float32"
        )
    return stored
