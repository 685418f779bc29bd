"""Encode a corpus with the retriever; only what it has not encoded before.

Inputs: `retriever` (a model folder), `corpus` (a corpus.parquet). Its shards are stretches of the
corpus, in its order; each holds vectors.npy, (passages, dimensions), and passages.parquet with the
passage_id of each row and a digest of its content. `search.open_index` reads them together. The
artifact itself holds encoder.json: what a vector depends on, besides the content of its passage.

The vectors of contents that another encoding with the same encoder.json has are copied, in whatever
corpus and order they were; a content that is there twice is encoded once. The manifest counts passages
as `encoded` and `reused`. Kept in memory are less than 200 bytes for each passage, not its text.

The artifact's key does not name the encodings that were copied from: they may differ between stores, and
between the workers that share the shards. What can differ with them is how texts were batched when a
vector was made, hence its last bits, as it does with the batch size or another machine; ids, order and
content never do. Copied vectors are the shard's own: it keeps no other artifact alive.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.encoders.encode import Encoder, encoder_of
from expandr_core.encoders.vector_cache import (
    PASSAGES,
    VECTORS,
    KnownVectors,
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
from expandr_core.records import Passage, passages_in
from expandr_core.runtime.job import Job
from expandr_core.runtime.runner import only_of, run_shard

VERSION = 4
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


def shards(job: Job) -> int:
    """Count the stretches of the corpus."""
    passages = pq.read_metadata(job.inputs["corpus"]).num_rows
    if not passages:
        raise DataError("the corpus has no passages; there is nothing to search")
    return -(-passages // PASSAGES_PER_SHARD)


def run(job: Job) -> None:
    """Make each stretch of the corpus that is not there yet."""
    count = shards(job)
    encoder = cache(lambda: encoder_of(job))  # loaded if a vector is missing
    job.counts |= {"passages": 0, "encoded": 0, "reused": 0}
    with closing(_known_vectors(job)) as known:
        for number, stretch in enumerate(_stretches(job.inputs["corpus"])):
            if job.takes(number):
                _make_shard(job, stretch, known, encoder)
            job.progress(number + 1, count, "shards")
    (job.out / ENCODER).write_text(_what_encodes(job))


def _what_encodes(job: Job) -> str:
    """Write down what a vector depends on, besides the content of its passage."""
    spec = job.spec
    retriever = spec.inputs["retriever"].digest
    story = {"version": spec.version, "retriever": retriever, "options": spec.options}
    return json.dumps(story, indent=1, sort_keys=True, allow_nan=False)


def _known_vectors(job: Job) -> KnownVectors:
    """Look the contents of the corpus up in earlier encodings."""
    stretches = _stretches(job.inputs["corpus"])
    wanted = np.concatenate([stretch.digests for stretch in stretches])
    known = KnownVectors(job.store, wanted)
    earlier = encodings_with(
        job.store,
        job.spec.stage,
        ENCODER,
        hashlib.sha256(_what_encodes(job).encode()).hexdigest(),
        len(wanted),
        only_of(job.spec),
    )
    known.add_encodings(earlier)
    return known


class _Stretch:
    """Some passages of the corpus."""

    def __init__(self, rows: pa.RecordBatch):
        self.passage_ids = rows["passage_id"]
        self.contents = [passage.content for passage in passages_in(rows)]
        self.digests = digests_of(self.contents)

    @property
    def digest(self) -> str:
        """SHA-256 of ids and contents."""
        ids = json.dumps(self.passage_ids.to_pylist()).encode()
        return hashlib.sha256(ids + self.digests.tobytes()).hexdigest()


def _stretches(path: Path) -> Iterator[_Stretch]:
    columns = list(Passage._fields)
    for rows in pq.ParquetFile(path).iter_batches(PASSAGES_PER_SHARD, columns=columns):
        yield _Stretch(rows)


def _make_shard(
    job: Job, stretch: _Stretch, known: KnownVectors, encoder: Callable[[], Encoder]
) -> None:
    """Make the shard of a stretch, unless it is there, and count what was encoded for it."""
    covered = known.covers(stretch.digests)
    made = False

    def write(out: Path) -> dict[str, float]:
        nonlocal made
        made = True
        return _write_shard(job, stretch, out, known, encoder)

    shard = run_shard(job, {"corpus": stretch.digest}, write)
    known.add(shard, stretch.digests)
    # one that was there is of this encoding, before a kill or by another worker, or of an earlier one
    encoded = 0 if covered and not made else shard.counts["encoded"]
    job.counts["passages"] += len(stretch.contents)
    job.counts["encoded"] += encoded
    job.counts["reused"] += len(stretch.contents) - encoded
    job.counts["dimensions"] = shard.counts["dimensions"]


def _write_shard(
    job: Job, stretch: _Stretch, out: Path, known: KnownVectors, encoder: Callable[[], Encoder]
) -> dict[str, float]:
    """Copy the vectors that are known, encode each other content once, and write them in order."""
    vectors, there = known.take(stretch.digests)
    missing = np.flatnonzero(~there)
    encoded = 0
    if len(missing):
        _, first, which = np.unique(
            stretch.digests[missing], axis=0, return_index=True, return_inverse=True
        )
        encoded = len(first)
        texts = [stretch.contents[row] for row in missing[first]]
        options: EncodeOptions = job.options
        new = _stored(encoder().encode_passages(texts), options.index.vector_type)
        if vectors is None:
            vectors = np.empty((len(there), new.shape[1]), new.dtype)
        vectors[missing] = new[which]
    assert vectors is not None
    np.save(out / VECTORS, vectors)
    write_passages(out / PASSAGES, stretch.passage_ids, stretch.digests)
    return {
        "passages": len(there),
        "encoded": encoded,
        "reused": len(there) - encoded,
        "dimensions": vectors.shape[1],
    }


def _stored(vectors: np.ndarray, vector_type: VectorType) -> np.ndarray:
    """Return vectors as they are kept.

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
            f"a vector has the component {np.abs(vectors).max():g}, and float16 ends at 65504; set "
            "retriever.index.vector_type to float32"
        )
    return stored
