"""Exact search: the k passages of largest inner product, block by block, with faiss.

Vectors stay on disk; each block of them is read, scored, and merged into the best so far. faiss proposes
passages (on all GPUs, if it was built for them), and the proposals are scored again in double precision.
So a score depends on its two vectors only, not on the block, the machine's arithmetic, or the other
queries. Equal vectors have equal scores. Ties are ordered as trec_eval does, by descending passage id,
so that metrics computed from scores agree with our ranks. The paper's code leaves ties, and faiss's
padding of short blocks, to chance.
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

Positions = NDArray[np.int64]
_MARGIN = 32  # extra proposals, so that rounding errors rarely leave the best unsettled
_ON_GPU = 2048  # the most passages per query that faiss can return from a GPU
_BYTES_PER_HIT = 128  # memory for merging, per query and proposal


class Index(NamedTuple):
    """An encoded corpus.

    Attributes:
        passage_ids: (passages,)
        shards: the vectors in order, as arrays or as files of `numpy.save`; each (passages of the
            shard, dimensions)
        dimensions: size of the vectors.
        tie_order: (passages,), see `tie_order`.
    """

    passage_ids: pa.Array
    shards: Sequence[Path | Vectors]
    dimensions: int
    tie_order: Positions

    def blocks(self, size: int) -> Iterator[Vectors]:
        """Read the vectors in order, at most `size` at once, as float32.

        Yields:
            (passages of the block, dimensions); the next block overwrites this one.
        """
        block = np.empty((min(size, len(self.passage_ids)), self.dimensions), np.float32)
        filled = 0
        for each in self.shards:  # map one file at a time, as its pages count as memory
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
    """Open the shards of an encoded corpus; their folders must exist as long as the index is used."""
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
    """Make an index of vectors (passages, dimensions) in memory."""
    return Index(passage_ids, [vectors], vectors.shape[1], tie_order(passage_ids))


def tie_order(passage_ids: pa.Array) -> Positions:
    """Return each passage's position in the order of ties: the greatest id (by bytes) is first.

    >>> tie_order(pa.array(["a", "c", "b"])).tolist()
    [2, 0, 1]
    """
    positions = np.arange(len(passage_ids))
    table = pa.table({"passage_id": passage_ids, "position": positions})
    order = np.empty_like(positions)
    order[table.sort_by([("passage_id", "descending")])["position"].to_numpy()] = positions
    return order


def nearest(queries: Vectors, index: Index, k: int, memory_gb: float) -> tuple[Vectors, Positions]:
    """Find the k passages of largest inner product with each query.

    Args:
        queries: (queries, dimensions)
        index: the encoded corpus.
        k: passages per query; all of them if there are fewer.
        memory_gb: limit for vectors and scores, half each. The less it is, the fewer queries are
            searched at once, and the more often the corpus is read.

    Returns:
        Scores in descending order, and positions in the index; both (queries, min(k, passages)).

    Raises:
        DataError: if a vector is not finite, as those of a diverged retriever.
    """
    k = min(k, len(index.passage_ids))
    scores = np.empty((len(queries), k), dtype=np.float32)
    positions = np.empty((len(queries), k), dtype=np.int64)
    half = memory_gb * 1e9 / 2
    queries_at_once = max(1, int(half / (_BYTES_PER_HIT * (k + _MARGIN))))
    passages_at_once = max(1, int(half / (4 * index.dimensions)))
    for first in range(0, len(queries), queries_at_once):
        group = slice(first, first + queries_at_once)
        start = 0
        for block in index.blocks(passages_at_once):
            _merge_block(queries[group], block, start, index, scores[group], positions[group])
            start += len(block)
    return scores, positions


def _merge_block(
    queries: Vectors,
    block: Vectors,
    start: int,
    index: Index,
    scores: Vectors,
    positions: Positions,
) -> None:
    """Merge a block's passages into the best so far: `scores` and `positions`, (queries, k).

    faiss's scores have rounding errors, and of passages that tie for its last proposal it keeps any.
    So a query is settled only if no passage beyond the proposals can be among its best; otherwise it
    is searched again with more proposals.

    Args:
        queries: (queries, dimensions)
        block: (passages of the block, dimensions)
        start: position of the block's first passage in the index.
        index: the encoded corpus.
        scores: (queries, k), descending; the first min(k, start) are set. Changed in place.
        positions: (queries, k), those of the scores. Changed in place.
    """
    k = scores.shape[1]
    seen, filled = min(k, start), min(k, start + len(block))

    # Bound the error of a score of faiss: by Cauchy-Schwarz from the lengths of its two vectors.
    longest = np.sqrt(np.einsum("pd,pd->p", block, block).max())
    lengths = np.linalg.norm(queries, axis=1)
    if not np.isfinite(longest) or not np.isfinite(lengths).all():
        raise DataError(
            "vectors are not finite numbers; the retriever may have diverged in training: "
            "lower its learning rate"
        )
    errors = lengths * longest * index.dimensions * 2.0**-23  # twice the bound for any summation

    rows = np.arange(len(queries))  # queries still unsettled
    width = min(k + _MARGIN, len(block))
    while len(rows):
        unsettled = []
        for row, approximate, proposed in zip(
            rows, *_propose(queries[rows], block, width), strict=True
        ):
            # Drop proposals that cannot beat the k-th best so far, however faiss erred.
            possible = proposed
            if seen == k:
                possible = proposed[approximate >= scores[row, -1] - errors[row]]
            # Order the best so far and the proposals together, by exact score, then by id.
            candidates = np.append(positions[row, :seen], start + possible)
            exact = np.append(scores[row, :seen], inner_products(block[possible], queries[row]))
            order = np.lexsort((index.tie_order[candidates], -exact))[:k]
            # Passages beyond the proposals score at most the last proposal's score plus its error.
            if width == len(block) or exact[order[-1]] > approximate[-1] + errors[row]:
                scores[row, :filled], positions[row, :filled] = exact[order], candidates[order]
            else:
                unsettled.append(row)
        rows = np.array(unsettled, dtype=np.int64)
        width = min(4 * width, len(block))


def _propose(queries: Vectors, block: Vectors, width: int) -> tuple[Vectors, Positions]:
    """Let faiss find the best of a block: descending scores and positions, both (queries, width)."""
    import faiss

    gpu: Any = faiss
    if gpu.get_num_gpus() and width <= _ON_GPU:
        spread = gpu.GpuMultipleClonerOptions()
        spread.shard = True  # give each GPU a share of the block
        flat = gpu.index_cpu_to_all_gpus(faiss.IndexFlatIP(block.shape[1]), spread)
        flat.add(block)
        return flat.search(queries, width)
    return faiss.knn(queries, block, width, faiss.METRIC_INNER_PRODUCT)


def inner_products(vectors: Vectors, query: Vectors) -> Vectors:
    """Return the inner product of each vector with a query; equal vectors have equal products.

    A matrix product does not guarantee that: the order of its sums depends on a row's position.

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
    (`ignore_identical_ids`), since in ArguAna and Quora the queries are passages themselves. Where ids
    coincide by chance, this loses an unrelated passage; the stages count these, and "keep" keeps them.

    Args:
        query_ids: (queries,)
        queries: (queries, dimensions)
        index: the encoded corpus.
        k: passages per query; fewer only if the corpus is smaller.
        memory_gb: see `nearest`.
        identical_ids: whether to ignore or keep a passage whose id equals the query's.

    Returns:
        A run (see RUN): the queries in their order, ranks from 1.
    """
    scores, positions, ranks = ranked(query_ids, queries, index, k, memory_gb, identical_ids)
    kept = ranks > 0
    columns = [
        query_ids.take(pa.array(np.nonzero(kept)[0])),
        index.passage_ids.take(pa.array(positions[kept])),
        scores[kept],
        ranks[kept],
    ]
    return pa.table(columns, schema=RUN)


def ranked(
    query_ids: pa.Array,
    queries: Vectors,
    index: Index,
    k: int,
    memory_gb: float,
    identical_ids: IdenticalIds,
) -> tuple[Vectors, Positions, NDArray[np.int32]]:
    """Rank as `search` does.

    Returns:
        Scores, positions in the index, and ranks from 1, of the k + 1 nearest passages or fewer, each
        (queries, passages). The rank of one that is left out is 0.
    """
    # Search one more, drop passages with the query's id, and keep the first k of the others.
    scores, positions = nearest(queries, index, k + 1, memory_gb)
    lookup = pc.SetLookupOptions(value_set=index.passage_ids)
    identical = pc.call_function("index_in", [query_ids], lookup)
    kept = positions != identical.fill_null(-1).to_numpy()[:, None]
    kept |= identical_ids == "keep"
    ranks = kept.cumsum(axis=1, dtype=np.int32)
    kept &= ranks <= k
    return scores, positions, np.where(kept, ranks, 0).astype(np.int32)
