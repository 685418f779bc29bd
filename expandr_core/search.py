"""Exact search: the k passages of largest inner product, block by block, with faiss.

Blocks are merged exactly, for any k, block size and corpus. Equal scores are ordered as trec_eval
does, by descending passage id, so that a metric computed from scores agrees with our ranks; the
paper's code leaves ties, and the padding of faiss for short blocks, to chance.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expandr_core.encoder import Vectors
from expandr_core.errors import DataError

RUN = pa.schema(
    [
        ("query_id", pa.string()),
        ("passage_id", pa.string()),
        ("score", pa.float32()),
        ("rank", pa.int32()),
    ]
)


class Index(NamedTuple):
    """An encoded corpus.

    Attributes:
        passage_ids: (passages,)
        shards: (passages of the shard, dimensions) each, usually memory maps.
        tie_order: (passages,), see `tie_order`.
    """

    passage_ids: pa.Array
    shards: list[Vectors]
    tie_order: NDArray[np.int64]

    @property
    def dimensions(self) -> int:
        """The size of a vector."""
        return self.shards[0].shape[1]

    def blocks(self, size: int) -> Iterator[Vectors]:
        """Read the vectors in order, at most `size` at once; (passages of the block, dimensions)."""
        waiting: list[Vectors] = []
        for shard in self.shards:
            for start in range(0, len(shard), size):
                piece = shard[start : start + size]
                if sum(map(len, waiting)) + len(piece) > size:
                    yield np.concatenate(waiting)
                    waiting = []
                waiting.append(piece)
        if waiting:
            yield np.concatenate(waiting)


def open_index(folders: Iterable[Path]) -> Index:
    """Open the shards that the stage `encode` wrote; vectors stay on disk until they are scored."""
    ids, shards = [], []
    for folder in folders:
        ids.append(pq.read_table(folder / "passages.parquet")["passage_id"])
        shards.append(np.load(folder / "vectors.npy", mmap_mode="r"))
        assert len(ids[-1]) == len(shards[-1])
    passage_ids = pa.chunked_array([chunk for each in ids for chunk in each.chunks])
    joined = passage_ids.combine_chunks()
    return Index(joined, shards, tie_order(joined))


def tie_order(passage_ids: pa.Array) -> NDArray[np.int64]:
    """Return each passage's place among equal scores: the greatest id (by bytes) comes first.

    >>> tie_order(pa.array(["a", "c", "b"])).tolist()
    [2, 0, 1]
    """
    places = np.arange(len(passage_ids))
    table = pa.table({"passage_id": passage_ids, "place": places})
    order = np.empty_like(places)
    order[table.sort_by([("passage_id", "descending")])["place"].to_numpy()] = places
    return order


def best(scores: NDArray[np.float32], order: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Return the places of the k largest scores, best first, equal ones by `order`.

    >>> scores = np.array([0.5, 0.9, 0.5, 0.5], dtype=np.float32)
    >>> best(scores, np.array([3, 2, 1, 0]), 2).tolist()
    [1, 3]
    """
    k = min(k, len(scores))
    if k == 0:
        return np.empty(0, dtype=np.int64)
    last = np.partition(scores, len(scores) - k)[len(scores) - k]
    above, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
    equal = equal[np.argsort(order[equal])][: k - len(above)]
    places = np.concatenate([above, equal])
    return places[np.lexsort((order[places], -scores[places]))]


def nearest(
    queries: Vectors, index: Index, k: int, block_size: int
) -> tuple[Vectors, NDArray[np.int64]]:
    """Find the k passages of largest inner product with each query.

    Args:
        queries: (queries, dimensions)
        index: the encoded corpus.
        k: passages per query; all of them if there are fewer.
        block_size: passages read and scored at once, which bounds memory.

    Returns:
        Scores, falling, and places in the index; both (queries, min(k, passages)).

    Raises:
        DataError: if a vector is not finite, as a diverged retriever makes them.
    """
    k = min(k, len(index.passage_ids))
    scores = np.empty((len(queries), 0), dtype=np.float32)
    places = np.empty((len(queries), 0), dtype=np.int64)
    start = 0
    for block in index.blocks(block_size):
        order = index.tie_order[start : start + len(block)]
        enough = scores[:, -1] if scores.shape[1] == k else None
        block_scores, block_places = _nearest_in_block(queries, block, order, k, enough)
        scores = np.concatenate([scores, block_scores], axis=1)
        places = np.concatenate([places, start + block_places], axis=1)
        start += len(block)
        sorting = np.lexsort((index.tie_order[places], -scores), axis=1)[:, :k]
        scores = np.take_along_axis(scores, sorting, axis=1)
        places = np.take_along_axis(places, sorting, axis=1)
    return scores, places


def _nearest_in_block(
    queries: Vectors,
    block: Vectors,
    order: NDArray[np.int64],
    k: int,
    enough: NDArray[np.float32] | None,
) -> tuple[Vectors, NDArray[np.int64]]:
    """Find the k best of one block, in any order; ties at the k-th place are settled by `order`.

    faiss keeps any of the passages that tie there. One more than k shows whether some do; then, and
    if their score could reach the result (`enough`, by query), that query is ranked in full.
    """
    import faiss

    width = min(k + 1, len(block))
    scores, places = faiss.knn(queries, block, width, faiss.METRIC_INNER_PRODUCT)
    if (places < 0).any() or not np.isfinite(scores).all():
        raise DataError(
            "vectors are not finite numbers; the retriever may have diverged in training: "
            "lower its learning rate"
        )
    if width > k:
        tied = scores[:, k] == scores[:, k - 1]
        if enough is not None:
            tied &= scores[:, k] >= enough
        for row in np.flatnonzero(tied):
            in_full = block @ queries[row]
            places[row, :k] = best(in_full, order, k)
            scores[row, :k] = in_full[places[row, :k]]
    return scores[:, :k], places[:, :k]


def search(
    query_ids: pa.Array, queries: Vectors, index: Index, k: int, block_size: int
) -> pa.Table:
    """Rank the k nearest passages of each query.

    A passage whose id equals the query's is left out, as BEIR does by default
    (`ignore_identical_ids`): in ArguAna and Quora queries are themselves passages. Where ids of the
    two coincide by chance, an unrelated passage is lost; comparability was preferred.

    Args:
        query_ids: (queries,)
        queries: (queries, dimensions)
        index: the encoded corpus.
        k: passages per query; fewer only if the corpus is smaller.
        block_size: passages scored at once.

    Returns:
        A run (see RUN): the queries in their order, ranks from 1.
    """
    scores, places = nearest(queries, index, k + 1, block_size)
    lookup = pc.SetLookupOptions(value_set=index.passage_ids)
    itself = pc.call_function("index_in", [query_ids], lookup)
    kept = places != itself.fill_null(-1).to_numpy()[:, None]
    ranks = kept.cumsum(axis=1, dtype=np.int32)
    kept &= ranks <= k
    columns = [
        query_ids.take(pa.array(np.nonzero(kept)[0])),
        index.passage_ids.take(pa.array(places[kept])),
        scores[kept],
        ranks[kept],
    ]
    return pa.table(columns, schema=RUN)
