"""Import the expansions that training triples bring, as the stage `expand` would have written them.

Input: `pseudo_docs`, the pseudo_docs.parquet of the stage `prepare`. One query can occur in several rows
of the triples with different expansions, and in others once; training wants equally many of each query.
So every query gets as many samples as training asks for, and one with fewer texts repeats them in turn:
with one sample it is the first text of each query, and with enough samples all of them.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from expandr_core.data.rows import write_parquet
from expandr_core.options.base import Options, Positive
from expandr_core.records import EXPANSIONS
from expandr_core.runtime.job import Job
from expandr_core.runtime.runner import run_shard

VERSION = 1
ROLE = "data"
ISOLATION = "never"


class ImportExpansionsOptions(Options):
    """How many expansions each query gets."""

    samples: Positive


OPTIONS = ImportExpansionsOptions


def run(job: Job) -> None:
    """Write all expansions as one shard."""
    job.counts |= run_shard(job, 0, {}, lambda out: _write(job, out)).counts


def _write(job: Job, out: Path) -> dict[str, float]:
    options: ImportExpansionsOptions = job.options
    counts = {"queries": 0, "texts": 0, "empty": 0, "queries with fewer texts, repeated": 0}

    def rows() -> Iterator[tuple[Any, ...]]:
        for query_id, texts in _by_query(job.inputs["pseudo_docs"]):
            counts["queries"] += 1
            counts["queries with fewer texts, repeated"] += len(texts) < options.samples
            for sample in range(options.samples):
                text = texts[sample % len(texts)]
                counts["empty"] += not text
                yield query_id, sample, None, text, None, None

    counts["texts"] = write_parquet(out / "expansions.parquet", EXPANSIONS, rows())
    return dict(counts)


def _by_query(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the expansions of one query after the other, in the order of their numbers."""
    batches = pq.ParquetFile(path).iter_batches(8192, columns=["query_id", "text"])
    rows = (
        row
        for batch in batches
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    )
    for query_id, group in groupby(rows, key=lambda row: row[0]):
        yield query_id, [text for _, text in group]
