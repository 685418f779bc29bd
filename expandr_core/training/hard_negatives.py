"""Which hard negatives an example may get, and which it gets in a pass of the training.

The reference repeats a negative where there are too few (D-31); here the place stays empty. Known
positives of the query are never among them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expandr_core.data.tables import places_of, read_columns
from expandr_core.errors import DataError

Numbers = NDArray[np.int64]
PASSAGES = 1 << 31  # more than there are passages: numbers a (query, passage) pair


@dataclass(frozen=True)
class Pools:
    """The hard negatives of each example, and the numbers that stand for ids in the loss.

    Attributes:
        query_numbers: (examples,)
        positive_numbers: (examples,)
        positive_pairs: (pairs,) sorted; query number * PASSAGES + passage number of each positive.
        first: (examples,) place of the example's first entry.
        size: (examples,) number of its entries.
        numbers: (entries,) passage numbers.
        texts: (entries,) Arrow array.
        dropped: entries left out: known positives of their query, and repetitions.
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
    """Gather the hard negatives of the examples: those given with them, else those mined.

    Args:
        examples: a retriever.parquet.
        mined: a negatives.parquet, or None.

    Raises:
        DataError: if a query brings no negatives and is missing among the mined.
    """
    columns = ["query_id", "negative_ids", "negatives"]
    sources = [read_columns(path, columns) for path in (examples, mined) if path]
    ids = read_columns(examples, ["query_id", "positive_id"])
    lengths = [source["negative_ids"].value_lengths().fill_null(0).to_numpy() for source in sources]
    queries = ids["query_id"].dictionary_encode()
    # An example's own negatives are a pool, and so are the mined ones of a query.
    owners = [places_of(source["query_id"], queries.dictionary) for source in sources]
    negative_ids = [source["negative_ids"].flatten() for source in sources]
    passages = pa.concat_arrays([ids["positive_id"], *negative_ids]).dictionary_encode()
    passages = passages.indices.to_numpy().astype(np.int64)
    positives, negatives = np.split(passages, [len(ids["positive_id"])])
    pairs = np.unique(owners[0] * PASSAGES + positives)

    pool = np.repeat(np.arange(sum(map(len, lengths))), np.concatenate(lengths))
    kept = ~np.isin(np.concatenate(owners)[pool] * PASSAGES + negatives, pairs)
    firsts = np.zeros(len(pool), dtype=bool)
    firsts[np.unique(pool * PASSAGES + negatives, return_index=True)[1]] = True
    kept &= firsts
    sizes = np.bincount(pool[kept], minlength=sum(map(len, lengths)))
    chosen = _choose(ids["query_id"], lengths[0], sources[1]["query_id"] if mined else None)
    used = np.unique(chosen)
    return Pools(
        query_numbers=owners[0],
        positive_numbers=positives,
        positive_pairs=pairs,
        first=(np.cumsum(sizes) - sizes)[chosen],
        size=sizes[chosen],
        numbers=negatives[kept],
        texts=pa.concat_arrays([source["negatives"].flatten() for source in sources]).filter(kept),
        dropped=int((np.concatenate(lengths) - sizes)[used].sum()),
    )


def _choose(query_ids: Any, given: Numbers, mined_ids: Any) -> Numbers:
    """Choose each example's pool: its own by position, or that of its query after all of these."""
    own = np.arange(len(given))
    if mined_ids is None:
        return own
    places = places_of(query_ids, mined_ids)
    missing = np.flatnonzero((given == 0) & (places < 0))
    if len(missing):
        raise DataError(
            f"query {query_ids[missing[0]].as_py()!r} has no hard negatives, neither given nor "
            "mined; mine them for the same examples"
        )
    return np.where(given > 0, own, len(given) + places)


def draw(size: int, wanted: int, turn: int, seed_of_cycle: Callable[[int], int]) -> list[int]:
    """Draw places from a pool without repetition, others in each turn until all had theirs.

    Args:
        size: entries in the pool.
        wanted: so many are drawn, or all if there are fewer.
        turn: 0 for the first time, then 1, ...
        seed_of_cycle: the seed of the n-th shuffle of the pool.

    >>> first, second = (draw(4, 2, turn, lambda cycle: cycle) for turn in (0, 1))
    >>> sorted(first + second), len(draw(1, 2, 0, lambda cycle: cycle))
    ([0, 1, 2, 3], 1)
    """
    wanted = min(wanted, size)
    if not wanted:
        return []
    cycle, place = divmod(turn, size // wanted)
    shuffled = Random(seed_of_cycle(cycle)).sample(range(size), size)
    return shuffled[place * wanted : (place + 1) * wanted]
