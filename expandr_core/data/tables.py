"""Read Arrow columns, and join expansions to queries by id, without making Python objects."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expandr_core.errors import DataError


def read_columns(path: Path, columns: list[str], where: Any = None) -> dict[str, Any]:
    """Read columns of a Parquet file, each as one array with 64-bit offsets."""
    table = pq.read_table(path, columns=columns, filters=where)
    return {name: _whole(table[name]) for name in columns}


def _whole(column: Any) -> Any:
    wide = column.type
    if pa.types.is_string(wide):
        wide = pa.large_string()
    elif pa.types.is_list(wide):
        wide = pa.large_list(pa.large_string())
    return pa.concat_arrays([pa.array([], wide), *column.cast(wide).chunks])


def positions_of(ids: Any, known: Any) -> NDArray[np.int64]:
    """Return the position of each id among the known ones, or -1.

    >>> positions_of(pa.array(["b", "c"]), pa.array(["a", "b"])).tolist()
    [1, -1]
    """
    known = known.cast(ids.type)
    positions = pc.call_function("index_in", [ids], pc.SetLookupOptions(value_set=known))
    return positions.fill_null(-1).to_numpy().astype(np.int64)


def join_expansions(folders: Iterable[Path], query_ids: Any, samples: int) -> list[Any]:
    """Read expansions from their shards, in the order of the queries.

    Args:
        folders: shards, each with an expansions.parquet.
        query_ids: (queries,) Arrow array; an id may occur more than once.
        samples: how many expansions of each query to read, lowest numbers first.

    Returns:
        An Arrow array (queries,) of texts per sample; "" where the model wrote nothing.

    Raises:
        DataError: if a query has no expansion with one of these numbers, or two.
    """
    columns = ["query_id", "sample", "text"]
    wanted = pc.field("sample") < samples
    shards = [read_columns(folder / "expansions.parquet", columns, wanted) for folder in folders]
    if not shards:
        raise DataError("the expansions have no shards; expand the queries again")
    table = pa.concat_tables([pa.table(shard) for shard in shards])
    joined = []
    for sample in range(samples):
        rows = table.filter(pc.field("sample") == sample)
        known, texts = _whole(rows["query_id"]), _whole(rows["text"])
        if known.null_count or len(known.unique()) < len(known):
            twice = [row["values"] for row in known.value_counts().to_pylist() if row["counts"] > 1]
            raise DataError(
                f"query {twice[0]!r} has two expansions numbered {sample}; expand the queries again"
            )
        positions = positions_of(query_ids, known)
        if (positions < 0).any():
            missing = query_ids[int(np.argmin(positions))].as_py()
            raise DataError(
                f"query {missing!r} has no expansion numbered {sample}; expand these queries with "
                "at least as many samples as expansions_per_query"
            )
        joined.append(texts.take(positions))
    return joined


def file_in(path: Path, name: str) -> Path:
    """Return a file, given its path or that of its folder."""
    return path / name if path.is_dir() else path
