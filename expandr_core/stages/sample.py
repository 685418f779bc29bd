"""Sample: the rows of a few queries or passages, chosen by a hash of the id, for a calibration.

Input: `table`, a Parquet file. Writes a file of the same name with the same columns.
"""

import heapq

import pyarrow.parquet as pq

from expandr_core.options.base import Options, Positive
from expandr_core.records import rows_with_ids
from expandr_core.runtime.job import Job
from expandr_core.seeding import derive_seed

VERSION = 2
ROLE = "data"
ISOLATION = "never"


class SampleOptions(Options):
    """How many queries, or passages of a corpus."""

    size: Positive


OPTIONS = SampleOptions


def run(job: Job) -> None:
    """Write the rows."""
    options: SampleOptions = job.options
    path = job.inputs["table"]
    names = pq.read_schema(path).names
    column = "query_id" if "query_id" in names else "passage_id"
    ids = pq.read_table(path, columns=[column])[column].unique().to_pylist()
    chosen = heapq.nsmallest(options.size, ids, lambda id_: derive_seed("sample", job.seed, id_))
    rows = rows_with_ids(path, column, chosen)
    pq.write_table(rows, job.out / path.name, compression="zstd")
    job.counts["chosen"] = len(chosen)
