"""Which rows differ between two tables of data, such as two corpora."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

_ROWS_AT_ONCE = 16384
Hashes = NDArray[Any]  # of 64 bits


@dataclass(frozen=True)
class RowDifference:
    """How many rows differ between two tables, and which of each kind comes first.

    Attributes:
        removed: rows of the first table only.
        added: rows of the second table only.
        changed: rows of both, with other content.
        first_removed: id of the first of these in its table; "" if there is none.
    """

    removed: int
    added: int
    changed: int
    first_removed: str = ""
    first_added: str = ""
    first_changed: str = ""

    def __bool__(self) -> bool:
        """Tell whether any row differs."""
        return bool(self.removed or self.added or self.changed)

    def plain(self) -> dict[str, Any]:
        """Return the values as JSON has them."""
        return asdict(self)

    def sentence(self, what: str) -> str:
        """Say it.

        >>> RowDifference(0, 1, 2, first_added="d9", first_changed="d1").sentence("documents")
        "documents: 1 added, the first 'd9'; 2 changed, the first 'd1'"
        """
        parts = [
            f"{number} {kind}, the first {first!r}"
            for number, kind, first in (
                (self.removed, "removed", self.first_removed),
                (self.added, "added", self.first_added),
                (self.changed, "changed", self.first_changed),
            )
            if number
        ]
        return f"{what}: {'; '.join(parts) or 'the same'}"


def row_difference(before: Path, after: Path, ids: tuple[str, ...]) -> RowDifference:
    """Compare two Parquet files row by row, joined by id; the order of rows does not count.

    Memory holds 16 bytes a row; two ids would have to share 64 bits to be confused.

    Args:
        before: the first file.
        after: the second one.
        ids: columns that identify a row; columns of both files are compared.
    """
    names = [name for name in pq.read_schema(before).names if name in pq.read_schema(after).names]
    one, other = (_hashes(path, names, ids) for path in (before, after))
    ids_before, ids_after = pd.Index(one[0]), pd.Index(other[0])
    at = ids_after.get_indexer(ids_before)
    removed, added = at < 0, ids_before.get_indexer(ids_after) < 0
    changed = ~removed & (np.append(other[1], np.zeros(1, np.uint64))[at] != one[1])
    return RowDifference(
        int(removed.sum()),
        int(added.sum()),
        int(changed.sum()),
        _first(before, ids, removed),
        _first(after, ids, added),
        _first(before, ids, changed),
    )


def _hashes(path: Path, names: list[str], ids: tuple[str, ...]) -> tuple[Hashes, Hashes]:
    """Return a hash of each row's id, and one of all of it."""
    found: tuple[list[Hashes], list[Hashes]] = [], []
    for batch in pq.ParquetFile(path).iter_batches(_ROWS_AT_ONCE, columns=names):
        frame = batch.to_pandas()
        for hashes, columns in zip(found, (list(ids), names), strict=True):
            rows = pd.util.hash_pandas_object(frame[columns].astype(str), index=False)
            hashes.append(rows.to_numpy(np.uint64))
    none = np.zeros(0, np.uint64)
    return np.concatenate([none, *found[0]]), np.concatenate([none, *found[1]])


def _first(path: Path, ids: tuple[str, ...], which: NDArray[np.bool_]) -> str:
    """Return the id of the first row that is marked."""
    if not which.any():
        return ""
    row = int(which.argmax())
    for batch in pq.ParquetFile(path).iter_batches(_ROWS_AT_ONCE, columns=list(ids)):
        if row < len(batch):
            return "/".join(str(batch[name][row].as_py()) for name in ids)
        row -= len(batch)
    return ""
