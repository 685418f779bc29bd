"""Sample: the rows of some queries or passages, chosen by a hash of the id; for a calibration.

Input: `table`, a Parquet file. Writes a file of the same name with the same columns.
"""

import heapq

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expandr_core.options.base import Options, Positive
from expandr_core.runtime.job import Job
from expandr_core.seeding import derive_seed

VERSION = 1
ROLE = "data"
ISOLATION = "never"


class SampleOptions(Options):
    """How many queries, or passages of a corpus."""

    size: Positive


OPTIONS = SampleOptions


def run(job: Job) -> None:
    """Write the rows, a stretch of the file at a time."""
    path = job.inputs["table"]
    names = pq.read_schema(path).names
    column = "query_id" if "query_id" in names else "passage_id"
    ids = pq.read_table(path, columns=[column])[column].unique().to_pylist()
    chosen = heapq.nsmallest(
        job.options.size, ids, lambda id_: derive_seed("sample", job.seed, id_)
    )
    file, wanted = pq.ParquetFile(path), pa.array(chosen, pa.string())
    with pq.ParquetWriter(job.out / path.name, file.schema_arrow, compression="zstd") as writer:
        for batch in file.iter_batches():
            rows = pa.Table.from_batches([batch])
            writer.write_table(rows.filter(pc.field(column).isin(wanted)))
    job.counts["chosen"] = len(chosen)
