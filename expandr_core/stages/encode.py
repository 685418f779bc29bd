"""Encode a corpus with the retriever.

Inputs: `retriever` (a model folder), `corpus` (a corpus.parquet). Its shards are stretches of the
corpus, in its order; each holds vectors.npy, float32, (passages, dimensions), and passages.parquet with
the passage_id of each row. `search.open_index` reads them together.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from expandr_core.collection import Passage
from expandr_core.encoder import Encoder, encoder_of
from expandr_core.errors import DataError
from expandr_core.options import EncodingOptions, Options
from expandr_core.query_shards import rows_digest
from expandr_core.stage import Job, run_shard

VERSION = 3
ROLE = "embed"
ISOLATION = "on-gpu"
PASSAGES_PER_SHARD = 8192
_ENCODED_AT_ONCE = 512


class OPTIONS(Options):
    """How passages are encoded."""

    encoding: EncodingOptions = Field(description="How texts become vectors.")


def shards(job: Job) -> int:
    """Count the stretches of the corpus."""
    passages = pq.read_metadata(job.inputs["corpus"]).num_rows
    if not passages:
        raise DataError("the corpus has no passages; there is nothing to search")
    return -(-passages // PASSAGES_PER_SHARD)


def run(job: Job) -> None:
    """Encode each stretch of the corpus that is not there yet."""
    count = shards(job)
    encoder = cache(lambda: encoder_of(job))  # loaded if a shard is missing

    for number, rows in enumerate(_stretches(job.inputs["corpus"])):
        if job.takes(number):

            def write(out: Path, rows: pa.Table = rows) -> dict[str, float]:
                return _write_shard(rows, out, encoder())

            shard = run_shard(job, {"corpus": rows_digest(rows)}, write)
            job.counts["passages"] = job.counts.get("passages", 0) + len(rows)
            job.counts["dimensions"] = shard.counts["dimensions"]
        job.progress(number + 1, count, "shards")


def _stretches(path: Path) -> Iterator[pa.Table]:
    columns = ["passage_id", "title", "text"]
    for batch in pq.ParquetFile(path).iter_batches(PASSAGES_PER_SHARD, columns=columns):
        yield pa.Table.from_batches([batch])


def _write_shard(rows: pa.Table, out: Path, encoder: Encoder) -> dict[str, float]:
    """Encode passages, sorted by length, and write them in their own order."""
    passages = [Passage(**row).content for row in rows.to_pylist()]
    vectors = np.empty((len(passages), encoder.dimensions), np.float32)
    by_length = np.argsort([-len(text) for text in passages], kind="stable")
    for start in range(0, len(passages), _ENCODED_AT_ONCE):
        block = by_length[start : start + _ENCODED_AT_ONCE]
        vectors[block] = encoder.encode_passages([passages[row] for row in block])
    if not np.isfinite(vectors).all():
        raise DataError(
            "the retriever's vectors are not finite numbers; it may have diverged in "
            "training: lower its learning rate"
        )
    np.save(out / "vectors.npy", vectors)
    pq.write_table(rows.select(["passage_id"]), out / "passages.parquet", compression="zstd")
    return {"passages": len(passages), "dimensions": encoder.dimensions}
