"""The hard negatives that an example may get, and the ones it gets in each pass of the training.

Where there are too few, the reference repeats one (D-31); here the slot stays empty. The known positives
of a query are never among its hard negatives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expandr_core.data.tables import positions_of, read_columns
from expandr_core.errors import DataError

Numbers = NDArray[np.int64]
PASSAGES = 1 << 31  # more than any corpus has; query * PASSAGES + passage numbers a pair


@dataclass(frozen=True)
class Pools:
    """The hard negatives of each example, and the numbers that stand for ids in the loss.

    Attributes:
        query_numbers: (examples,)
        positive_numbers: (examples,)
        positive_pairs: (pairs,) sorted numbers of the (query, positive) pairs.
        first: (examples,) position of the example's first entry.
        size: (examples,) number of its entries.
        numbers: (entries,) passage numbers.
        texts: (entries,) Arrow array.
        dropped: number of dropped entries: known positives of their query, and repetitions.
    """

    query_numbers: Numbers
    positive_numbers: Numbers
    positive_pairs: Numbers
    first: Numbers
    size: Numbers
    numbers: Numbers
    texts: Any
    dropped: int


def read_pools(examples: Path, mined: Path | None) -> Pools:
    """Read the hard negatives of the examples: those in their own row or, without any, the mined ones.

    Args:
        examples: a retriever.parquet.
        mined: a negatives.parquet, or None.

    Raises:
        DataError: if a query has neither negatives in its row nor mined ones.
    """
    columns = ["query_id", "negative_ids", "negatives"]
    sources = [read_columns(path, columns) for path in (examples, mined) if path]
    ids = read_columns(examples, ["query_id", "positive_id"])

    # each row of a source is a pool; the pools of the examples come first, then those of mined queries
    lists = [source["negative_ids"] for source in sources]
    sizes = np.concatenate([each.value_lengths().fill_null(0).to_numpy() for each in lists])
    pool = np.repeat(np.arange(len(sizes)), sizes)  # (entries,)

    # numbers instead of ids: of queries by their first example, of passages by their first occurrence
    queries = ids["query_id"].dictionary_encode().dictionary
    owners = [positions_of(source["query_id"], queries) for source in sources]  # (pools,) each
    encoded = pa.concat_arrays([ids["positive_id"], *(each.flatten() for each in lists)])
    passages = encoded.dictionary_encode().indices.to_numpy().astype(np.int64)
    positives, negatives = np.split(passages, [len(ids["positive_id"])])
    pairs = np.unique(owners[0] * PASSAGES + positives)

    # keep the first occurrence of a passage in its pool, unless it is a positive of the pool's query
    kept = np.zeros(len(pool), dtype=bool)
    kept[np.unique(pool * PASSAGES + negatives, return_index=True)[1]] = True
    kept &= ~np.isin(np.concatenate(owners)[pool] * PASSAGES + negatives, pairs)
    left = np.bincount(pool[kept], minlength=len(sizes))

    given = sizes[: len(ids["query_id"])]
    chosen = _choose(ids["query_id"], given, sources[1]["query_id"] if mined else None)
    return Pools(
        query_numbers=owners[0],
        positive_numbers=positives,
        positive_pairs=pairs,
        first=(np.cumsum(left) - left)[chosen],
        size=left[chosen],
        numbers=negatives[kept],
        texts=pa.concat_arrays([source["negatives"].flatten() for source in sources]).filter(kept),
        dropped=int((sizes - left)[np.unique(chosen)].sum()),
    )


def _choose(query_ids: Any, given: Numbers, mined_ids: Any) -> Numbers:
    """Return the number of each example's pool: its own, or that of its query after all of these."""
    own = np.arange(len(given))
    if mined_ids is None:
        return own
    positions = positions_of(query_ids, mined_ids)
    missing = np.flatnonzero((given == 0) & (positions < 0))
    if len(missing):
        raise DataError(
            f"query {query_ids[missing[0]].as_py()!r} has no hard negatives, neither given nor "
            "mined; mine them for the same examples"
        )
    return np.where(given > 0, own, len(given) + positions)


def draw(size: int, count: int, turn: int, seed_of_cycle: Callable[[int], int]) -> list[int]:
    """Draw entries of a pool without repetition, other ones each turn until all have been drawn.

    Args:
        size: entries in the pool.
        count: entries to draw; all if the pool has fewer.
        turn: 0 for the first time, then 1, ...
        seed_of_cycle: returns the seed of the n-th shuffle of the pool.

    >>> first, second = (draw(4, 2, turn, lambda cycle: cycle) for turn in (0, 1))
    >>> sorted(first + second), len(draw(1, 2, 0, lambda cycle: cycle))
    ([0, 1, 2, 3], 1)
    """
    count = min(count, size)
    if not count:
        return []
    cycle, turn = divmod(turn, size // count)
    shuffled = Random(seed_of_cycle(cycle)).sample(range(size), size)
    return shuffled[turn * count : (turn + 1) * count]
