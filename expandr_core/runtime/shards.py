"""Cut a table of queries into shards that do not change with other rows."""

import hashlib
import json
import mmap
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expandr_core.seeding import derive_seed

_ROWS_AT_ONCE = 1 << 15  # per batch that is sorted in memory


class Buckets:
    """The rows of a table of queries by a hash of the query, cut in one pass over the file.

    They lie in an unnamed file on the disk, mapped into memory: only what is read takes memory.
    """

    def __init__(self, path: Path, columns: list[str], buckets: int, folder: Path | None = None):
        """Cut a table.

        Args:
            path: Parquet file with `query_id`, and with `positive_id` if a query can have several rows.
            columns: to read besides the ids, where they exist.
            buckets: their number, a power of two.
            folder: for the file, on a disk; by default that of temporary files.
        """
        file = pq.ParquetFile(path)
        present = file.schema_arrow.names
        self._order = [name for name in ("query_id", "positive_id") if name in present]
        names = [*dict.fromkeys([*self._order, *(name for name in columns if name in present)])]
        schema = pa.schema([file.schema_arrow.field(name) for name in names])
        self._buckets = buckets
        ends = [np.zeros((0, buckets + 1), np.int64)]
        with tempfile.TemporaryFile(dir=folder) as spilled:
            with pa.ipc.new_file(spilled, schema) as writer:
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=names):
                    bucket = self._bucket_of(batch["query_id"])
                    counts = np.bincount(bucket, minlength=buckets)
                    ends.append(np.concatenate([[0], np.cumsum(counts)])[None])
                    order = pa.array(np.argsort(bucket, kind="stable"))
                    writer.write_batch(batch.select(names).take(order))
            spilled.flush()
            mapped = pa.py_buffer(mmap.mmap(spilled.fileno(), 0, access=mmap.ACCESS_READ))
        reader = pa.ipc.open_file(mapped)
        self._batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
        self._schema = schema
        self._ends = np.concatenate(ends)  # (batches, buckets + 1), rows of each batch
        self.sizes = np.diff(self._ends).sum(axis=0)  # rows by bucket

    def _bucket_of(self, query_ids: pa.Array) -> NDArray[np.int64]:
        ids = query_ids.dictionary_encode()
        own = [derive_seed("shard", id_) % self._buckets for id_ in ids.dictionary.to_pylist()]
        return np.array(own, np.int64)[ids.indices.to_numpy()]

    def rows(self, bucket: int) -> pa.Table:
        """Return the rows of a bucket, sorted by query and positive, and else as in the file."""
        ends = self._ends[:, bucket : bucket + 2]
        parts = [
            batch.slice(start, end - start)
            for batch, (start, end) in zip(self._batches, ends.tolist(), strict=True)
            if end > start
        ]
        rows = pa.Table.from_batches(parts, self._schema)
        return rows.sort_by([(name, "ascending") for name in self._order])

    def rows_of(self, query_ids: pa.Array) -> pa.Table:
        """Return the rows of some queries, sorted by query and positive."""
        buckets = np.unique(self._bucket_of(query_ids)).tolist()
        rows = pa.concat_tables([self._schema.empty_table(), *map(self.rows, buckets)])
        rows = rows.filter(pc.field("query_id").isin(query_ids))
        return rows.sort_by([(name, "ascending") for name in self._order])


def one_row_a_query(rows: pa.Table) -> pa.Table:
    """Keep one row per query of sorted rows: the first, with the first positive id."""
    ids = rows["query_id"].to_pylist()
    return rows.take([row for row in range(len(ids)) if row == 0 or ids[row - 1] != ids[row]])


def rows_digest(rows: pa.Table) -> str:
    """Return the SHA-256 of a table's content."""
    content = json.dumps(rows.to_pylist(), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()


def query_count(path: Path) -> int:
    """Return the number of distinct queries in a table."""
    return len(_query_ids(path))


def shard_sizes(path: Path, queries_per_shard: int) -> list[int]:
    """Return the queries in each shard: between half of `queries_per_shard` and all of it."""
    ids = _query_ids(path)
    shards = _power_of_two(len(ids), queries_per_shard)
    found = Counter(derive_seed("shard", id_.as_py()) % shards for id_ in ids)
    return [found[number] for number in range(shards)]


def shard_count(path: Path, queries_per_shard: int) -> int:
    """Return the number of shards that `query_shards` makes, a power of two."""
    return _power_of_two(query_count(path), queries_per_shard)


def _query_ids(path: Path) -> pa.Array:
    return pq.read_table(path, columns=["query_id"])["query_id"].unique()


def _power_of_two(queries: int, queries_per_shard: int) -> int:
    shards = 1
    while shards * queries_per_shard < queries:
        shards *= 2
    return shards


def query_shards(
    path: Path,
    queries_per_shard: int,
    columns: list[str],
    takes: Callable[[int], bool] = lambda number: True,
    folder: Path | None = None,
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the number and the queries of each shard, one row per query, sorted by id.

    A query's shard is a hash of its id, and the number of shards is a power of two, so that adding or
    changing a row affects one shard only. A shard without queries is left out.

    Args:
        path: Parquet file with `query_id`, and with `positive_id` if a query can have several rows.
        queries_per_shard: approximate maximum.
        columns: to read besides the ids, where they exist.
        takes: selects shards by number; asked right before a shard is yielded.
        folder: for a temporary copy of the columns.
    """
    count = shard_count(path, queries_per_shard)
    buckets = Buckets(path, columns, count, folder)
    for number in np.flatnonzero(buckets.sizes).tolist():
        if takes(number):
            yield number, one_row_a_query(buckets.rows(number))
