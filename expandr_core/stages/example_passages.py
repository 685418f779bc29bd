"""The passages of the training examples, a corpus to rank positives in where there is no collection.

Inputs: `preference` and `retriever`, the examples. Writes corpus.parquet: their positives and negatives,
each id once, in the order of the examples.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.options.base import Options
from expandr_core.planning.workload import PlannedStep
from expandr_core.records import PASSAGES
from expandr_core.runtime.job import Job

VERSION = 1
ROLE = "data"
ISOLATION = "never"
OPTIONS = Options
CORPUS = "corpus.parquet"
FILES = (CORPUS,)
COLUMNS = ["positive_id", "positive", "negative_ids", "negatives"]
BYTES_GROW_WITH = "passages"


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict a positive and a negative for each example."""
    return {"passages": 2 * sum(step.rows(role) for role in step.inputs)}


def run(job: Job) -> None:
    """Write corpus.parquet, and count from where its passages are."""
    seen: set[str] = set()
    with pq.ParquetWriter(job.out / CORPUS, PASSAGES, compression="zstd") as writer:
        for role in ("preference", "retriever"):
            for batch in pq.ParquetFile(job.inputs[role]).iter_batches(columns=COLUMNS):
                new: dict[str, str] = {}
                for kind, passage_id, text in _passages(batch):
                    if passage_id not in seen:
                        seen.add(passage_id)
                        new[passage_id] = text
                        job.counts[f"{role}/{kind}"] = job.counts.get(f"{role}/{kind}", 0) + 1
                columns = [list(new), [""] * len(new), list(new.values())]
                writer.write_table(pa.table(columns, schema=PASSAGES))
    job.counts["passages"] = len(seen)


def _passages(batch: pa.RecordBatch) -> Iterator[tuple[str, str, str]]:
    for positive_id, positive, ids, texts in zip(
        *(batch[name].to_pylist() for name in COLUMNS), strict=True
    ):
        yield "positives", positive_id, positive
        for negative_id, negative in zip(ids or (), texts or (), strict=True):
            yield "negatives", negative_id, negative
