"""Exact search: the k passages of largest inner product, block by block, with faiss.

Vectors stay on disk; a block of them is read, scored, and merged into the best so far. faiss proposes
(on all GPUs, if it is built for them and they are there), and what it proposes is scored once more in
double precision. So a score depends on two vectors and nothing else: not on the block, the machine's
arithmetic, or what else is searched for. Equal vectors have equal scores; these are ordered as
trec_eval does, by descending passage id, so that a metric computed from scores agrees with our ranks.
The paper's code leaves ties, and the padding of faiss for short blocks, to chance.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expandr_core.encoders.encode import Vectors
from expandr_core.errors import DataError
from expandr_core.options.data import IdenticalIds
from expandr_core.records import RUN

Places = NDArray[np.int64]
_MARGIN = 32  # passages asked for beyond k, so that rounding rarely leaves open which are the best
_ON_GPU = 2048  # faiss finds no more per query there
_BYTES_A_HIT = 128  # what merging holds of each query and passage found, all arrays together


class Index(NamedTuple):
    """An encoded corpus.

    Attributes:
        passage_ids: (passages,)
        shards: its vectors in order, or files that `numpy.save` wrote of them; each (passages of the
            shard, dimensions)
        dimensions: the size of a vector.
        tie_order: (passages,), see `tie_order`.
    """

    passage_ids: pa.Array
    shards: Sequence[Path | Vectors]
    dimensions: int
    tie_order: Places

    def blocks(self, size: int) -> Iterator[Vectors]:
        """Read the vectors in order, at most `size` at once, as float32.

        Yields:
            (passages of the block, dimensions); the next block takes the place of this one.
        """
        block = np.empty((min(size, len(self.passage_ids)), self.dimensions), np.float32)
        filled = 0
        for each in self.shards:  # files one at a time: their pages count as memory
            shard = np.load(each, mmap_mode="r") if isinstance(each, Path) else each
            start = 0
            while start < len(shard):
                piece = shard[start : start + len(block) - filled]
                block[filled : filled + len(piece)] = piece
                start, filled = start + len(piece), filled + len(piece)
                if filled == len(block):
                    yield block
                    filled = 0
        if filled:
            yield block[:filled]


def open_index(folders: Iterable[Path]) -> Index:
    """Open the shards that the stage `encode` wrote; the folders are read as long as it is used."""
    ids, files, shape = [], [], (0, 0)
    for folder in folders:
        ids.append(pq.read_table(folder / "passages.parquet", columns=["passage_id"])["passage_id"])
        files.append(folder / "vectors.npy")
        shape = np.load(files[-1], mmap_mode="r").shape
        assert len(ids[-1]) == shape[0]
    passage_ids = pa.chunked_array([chunk for each in ids for chunk in each.chunks])
    joined = passage_ids.combine_chunks()
    return Index(joined, files, shape[1], tie_order(joined))


def index_in_memory(passage_ids: pa.Array, vectors: Vectors) -> Index:
    """Make an index of vectors, (passages, dimensions)."""
    return Index(passage_ids, [vectors], vectors.shape[1], tie_order(passage_ids))


def tie_order(passage_ids: pa.Array) -> Places:
    """Return each passage's place among equal scores: the greatest id (by bytes) comes first.

    >>> tie_order(pa.array(["a", "c", "b"])).tolist()
    [2, 0, 1]
    """
    places = np.arange(len(passage_ids))
    table = pa.table({"passage_id": passage_ids, "place": places})
    order = np.empty_like(places)
    order[table.sort_by([("passage_id", "descending")])["place"].to_numpy()] = places
    return order


def nearest(queries: Vectors, index: Index, k: int, memory_gb: float) -> tuple[Vectors, Places]:
    """Find the k passages of largest inner product with each query.

    Args:
        queries: (queries, dimensions)
        index: the encoded corpus.
        k: passages per query; all of them if there are fewer.
        memory_gb: what vectors and scores may take at once, half and half. With fewer queries at once
            the corpus is read more often.

    Returns:
        Scores, falling, and places in the index; both (queries, min(k, passages)).

    Raises:
        DataError: if a vector is not finite, as a diverged retriever makes them.
    """
    k = min(k, len(index.passage_ids))
    scores = np.empty((len(queries), k), dtype=np.float32)
    places = np.empty((len(queries), k), dtype=np.int64)
    half = memory_gb * 1e9 / 2
    queries_at_once = max(1, int(half / (_BYTES_A_HIT * (k + _MARGIN))))
    passages_at_once = max(1, int(half / (4 * index.dimensions)))
    for first in range(0, len(queries), queries_at_once):
        group = slice(first, first + queries_at_once)
        start = 0
        for block in index.blocks(passages_at_once):
            _merge_block(queries[group], block, start, index, scores[group], places[group])
            start += len(block)
    return scores, places


def _merge_block(
    queries: Vectors, block: Vectors, start: int, index: Index, scores: Vectors, places: Places
) -> None:
    """Merge what a block has into the best so far: `scores` and `places`, (queries, k).

    faiss keeps any of the passages that tie at its last place, and its scores err by their rounding.
    So a query is settled only if no passage that was not proposed can be among its best; else it is
    asked about again, with more room.
    """
    k = scores.shape[1]
    seen, filled = min(k, start), min(k, start + len(block))
    longest = np.sqrt(np.einsum("pd,pd->p", block, block).max())
    lengths = np.linalg.norm(queries, axis=1)
    if not np.isfinite(longest) or not np.isfinite(lengths).all():
        raise DataError(
            "vectors are not finite numbers; the retriever may have diverged in training: "
            "lower its learning rate"
        )
    errors = lengths * longest * index.dimensions * 2.0**-23  # twice the bound for any summation
    rows = np.arange(len(queries))
    width = min(k + _MARGIN, len(block))
    while len(rows):
        unsettled = []
        for row, close, nearby in zip(rows, *_propose(queries[rows], block, width), strict=True):
            possible = nearby
            if seen == k:
                possible = nearby[close >= scores[row, -1] - errors[row]]
            found = np.append(places[row, :seen], start + possible)
            exact = np.append(scores[row, :seen], inner_products(block[possible], queries[row]))
            order = np.lexsort((index.tie_order[found], -exact))[:k]
            if width == len(block) or exact[order[-1]] > close[-1] + errors[row]:
                scores[row, :filled], places[row, :filled] = exact[order], found[order]
            else:
                unsettled.append(row)
        rows = np.array(unsettled, dtype=np.int64)
        width = min(4 * width, len(block))


def _propose(queries: Vectors, block: Vectors, width: int) -> tuple[Vectors, Places]:
    """Let faiss find the best of a block; scores, falling, and places, both (queries, width)."""
    import faiss

    gpu: Any = faiss
    if gpu.get_num_gpus() and width <= _ON_GPU:
        spread = gpu.GpuMultipleClonerOptions()
        spread.shard = True  # every GPU has a share of the block
        flat = gpu.index_cpu_to_all_gpus(faiss.IndexFlatIP(block.shape[1]), spread)
        flat.add(block)
        return flat.search(queries, width)
    return faiss.knn(queries, block, width, faiss.METRIC_INNER_PRODUCT)


def inner_products(vectors: Vectors, query: Vectors) -> Vectors:
    """Return the inner product of each vector with a query; equal vectors have equal ones.

    A matrix product does not promise that: how it sums depends on the place of a row.

    >>> inner_products(np.array([[1, 2], [3, 0]], np.float32), np.array([1, 1], np.float32)).tolist()
    [3.0, 3.0]
    """
    exact = np.einsum("pd,d->p", vectors.astype(np.float64), query.astype(np.float64))
    return exact.astype(np.float32)


def search(
    query_ids: pa.Array,
    queries: Vectors,
    index: Index,
    k: int,
    memory_gb: float,
    identical_ids: IdenticalIds = "ignore",
) -> pa.Table:
    """Rank the k nearest passages of each query.

    A passage whose id equals the query's is left out, as BEIR does by default
    (`ignore_identical_ids`): in ArguAna and Quora queries are themselves passages. Where ids of the
    two coincide by chance, an unrelated passage is lost, which the stages count; "keep" keeps it.

    Args:
        query_ids: (queries,)
        queries: (queries, dimensions)
        index: the encoded corpus.
        k: passages per query; fewer only if the corpus is smaller.
        memory_gb: see `nearest`.
        identical_ids: what becomes of a passage whose id is the query's.

    Returns:
        A run (see RUN): the queries in their order, ranks from 1.
    """
    scores, places = nearest(queries, index, k + 1, memory_gb)
    lookup = pc.SetLookupOptions(value_set=index.passage_ids)
    itself = pc.call_function("index_in", [query_ids], lookup)
    kept = places != itself.fill_null(-1).to_numpy()[:, None]
    kept |= identical_ids == "keep"
    ranks = kept.cumsum(axis=1, dtype=np.int32)
    kept &= ranks <= k
    columns = [
        query_ids.take(pa.array(np.nonzero(kept)[0])),
        index.passage_ids.take(pa.array(places[kept])),
        scores[kept],
        ranks[kept],
    ]
    return pa.table(columns, schema=RUN)
