"""Cut a table of queries into shards that do not change with other rows."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expandr_core.records import rows_with_ids
from expandr_core.seeding import derive_seed

READ_AT_ONCE = 4  # shards per pass over the file, to bound memory


def one_row_a_query(path: Path, query_ids: pa.Array, columns: list[str]) -> pa.Table:
    """Read one row per query, sorted by query id: the one with the first positive id."""
    present = pq.read_schema(path).names
    order = [name for name in ("query_id", "positive_id") if name in present]
    wanted = [*dict.fromkeys([*order, *(name for name in columns if name in present)])]
    rows = rows_with_ids(path, "query_id", query_ids, wanted)
    rows = rows.sort_by([(name, "ascending") for name in order])
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
) -> Iterator[pa.Table]:
    """Yield the queries shard by shard, one row per query, sorted by id.

    A query's shard is a hash of its id, and the number of shards is a power of two, so that adding or
    changing a row affects one shard only.

    Args:
        path: Parquet file with `query_id`, and with `positive_id` if a query can have several rows.
        queries_per_shard: approximate maximum.
        columns: to read besides the ids, where they exist.
        takes: selects shards by number.
    """
    ids = _query_ids(path)
    shards = _power_of_two(len(ids), queries_per_shard)
    buckets = pa.array([derive_seed("shard", id_.as_py()) % shards for id_ in ids], pa.int32())
    numbers = [number for number in range(shards) if takes(number)]
    for first in range(0, len(numbers), READ_AT_ONCE):
        group = numbers[first : first + READ_AT_ONCE]
        wanted = ids.filter(pc.is_in(buckets, pa.array(group, pa.int32())))  # pyright: ignore[reportAttributeAccessIssue]
        rows = one_row_a_query(path, wanted, columns)
        bucket_of = [derive_seed("shard", id_) % shards for id_ in rows["query_id"].to_pylist()]
        for bucket in group:
            kept = [row for row, own in enumerate(bucket_of) if own == bucket]
            if kept:
                yield rows.take(kept)
