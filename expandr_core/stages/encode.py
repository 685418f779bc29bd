"""Encode a corpus with the retriever.

Inputs: `retriever` (a model folder), `corpus` (a corpus.parquet). Writes vectors.npy, float32,
(passages, dimensions), and passages.parquet with the passage_id of each row, in the corpus's order.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from expandr_core.collection import Passage
from expandr_core.encoder import Encoder
from expandr_core.errors import DataError
from expandr_core.options import Options, Positive, runtime
from expandr_core.stage import Job

VERSION = 1
ISOLATION = "on-gpu"
_SORTED_AT_ONCE = 8192
_ENCODED_AT_ONCE = 512


class OPTIONS(Options):
    """How passages are encoded."""

    normalize: bool = Field(description="Scale vectors to length 1.")
    max_tokens: Positive = Field(description="Longer passages are cut.")
    batch_size: Positive = runtime(128, description="Passages encoded at once.")


def run(job: Job) -> None:
    """Encode the corpus block by block, each sorted by length, into a file on disk."""
    options: OPTIONS = job.options
    encoder = Encoder(
        job.inputs["retriever"],
        job.spec.runtime.get("device", "auto"),
        options.normalize,
        options.max_tokens,
        options.batch_size,
    )
    corpus = pq.ParquetFile(job.inputs["corpus"])
    total = corpus.metadata.num_rows
    if not total:
        raise DataError("the corpus has no passages; there is nothing to search")
    vectors = np.lib.format.open_memmap(
        job.out / "vectors.npy", "w+", np.float32, (total, encoder.dimensions)
    )
    done = 0
    ids_schema = pa.schema([("passage_id", pa.string())])
    with pq.ParquetWriter(job.out / "passages.parquet", ids_schema, compression="zstd") as ids:
        for batch in corpus.iter_batches(_SORTED_AT_ONCE, columns=["passage_id", "title", "text"]):
            passages = [Passage(**row).content for row in batch.to_pylist()]
            by_length = np.argsort([-len(text) for text in passages], kind="stable")
            for start in range(0, len(passages), _ENCODED_AT_ONCE):
                rows = by_length[start : start + _ENCODED_AT_ONCE]
                vectors[done + rows] = encoder.encode([passages[row] for row in rows])
                job.progress(done + start + len(rows), total, "passages")
            if not np.isfinite(vectors[done : done + len(passages)]).all():
                raise DataError(
                    "the retriever's vectors are not finite numbers; it may have diverged in "
                    "training: lower its learning rate"
                )
            ids.write_batch(batch.select(["passage_id"]))
            done += len(passages)
            vectors.flush()
    job.counts |= {"passages": total, "dimensions": encoder.dimensions}
