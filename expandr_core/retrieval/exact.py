"""Exact search: the k passages of largest inner product.

Products in low precision propose passages (`proposals`), or faiss does, in one pass over the corpus for
all queries. Those that can be among the best, however far the products are off, are scored again in
double precision. So a score depends on its two vectors only, not on blocks, the machine's arithmetic, or
the other queries. Equal vectors have equal scores. Ties are ordered as trec_eval does, by descending
passage id, so that metrics computed from scores agree with our ranks. The paper's code leaves ties, and
faiss's padding of short blocks, to chance.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from expandr_core.encoders.encode import Vectors
from expandr_core.options.data import IdenticalIds
from expandr_core.records import RUN
from expandr_core.retrieval.coarse import Plan, most_proposals, plan
from expandr_core.retrieval.index import Index, Positions, require_finite
from expandr_core.retrieval.products import (
    UNDERFLOW,
    Proposer,
    lengths_of,
    passages_at_once,
    quickest_proposer,
    summation_error,
    tiles,
)
from expandr_core.retrieval.proposals import Proposals, propose
from expandr_core.runtime.cores import shares_of, work_on_all

_BYTES_PER_PROPOSAL = 80
_PAIRS_AT_ONCE = 1 << 18  # that are scored, where many passages are equally near
_FEW_PAIRS = 1 << 14  # of a query and a passage, which are all scored as fast as some are proposed
Keys = NDArray[np.uint64]  # a score and its tie order: the greater, the nearer
_NONE = np.uint64(0)  # below the key of any score
_LAST = np.uint64((1 << 32) - 1)


def nearest(
    queries: Vectors, index: Index, k: int, memory_gb: float, proposer: Proposer | None = None
) -> tuple[Vectors, Positions]:
    """Find the k passages of largest inner product with each query.

    Args:
        queries: (queries, dimensions)
        index: the encoded corpus.
        k: passages per query; all of them if there are fewer.
        memory_gb: limit for vectors, proposals and scores. The corpus is read once for as many queries
            as fit.
        proposer: what proposes passages; by default the quickest that settles most queries. It changes
            no result.

    Returns:
        Scores in descending order, and positions in the index; both (queries, min(k, passages)).

    Raises:
        DataError: if a vector is not finite, as those of a diverged retriever.
    """
    k = min(k, len(index.passage_ids))
    queries = np.ascontiguousarray(queries, np.float32)
    require_finite(lengths_of(queries))
    scores = np.empty((len(queries), k), dtype=np.float32)
    positions = np.empty((len(queries), k), dtype=np.int64)
    if proposer:
        own = Plan(proposer, most_proposals(k))
    else:
        own = plan(queries, index, k, memory_gb, quickest_proposer(index.devices[0]))
    at_once = _fitting(index, own.proposals, memory_gb)
    for first in range(0, len(queries) if k else 0, at_once):
        group = slice(first, first + at_once)
        keys = _best_keys(queries[group], index, k, memory_gb, own)
        scores[group], positions[group] = _decode(keys, index)
    return scores, positions


def queries_at_once(index: Index, k: int, memory_gb: float) -> int:
    """Return how many queries are searched for in one pass over the corpus, or more."""
    return _fitting(index, most_proposals(k), memory_gb)


def _fitting(index: Index, proposals: int, memory_gb: float) -> int:
    """Return how many queries' proposals fit into three quarters of the memory."""
    each = _BYTES_PER_PROPOSAL * proposals + 24 * index.dimensions
    return max(1, int(memory_gb * 1e9 * 3 / 4 / each))


def _best_keys(queries: Vectors, index: Index, k: int, memory_gb: float, own: Plan) -> Keys:
    """Return the keys of the k best passages of each query, descending; (queries, k)."""
    passages = len(index.passage_ids)
    wanted = min(own.proposals, passages)
    if wanted == passages or len(queries) * passages <= _FEW_PAIRS:
        return _all_keys(queries, index)[:, : -k - 1 : -1]
    proposals = propose(queries, index, wanted, memory_gb, own.proposer)
    keys, unsettled = _settled(queries, proposals, index, k)
    again = np.flatnonzero(unsettled)
    if len(again):
        worst, _ = _decode(keys[again, -1:], index)
        size = passages_at_once(index, memory_gb)
        keys[again] = _search_again(queries[again], worst[:, 0], index, k, size)
    return keys


def _settled(
    queries: Vectors, proposals: Proposals, index: Index, k: int
) -> tuple[Keys, NDArray[np.bool_]]:
    """Score the proposals that can be among the k best.

    Returns:
        The keys of each query's k best proposals, descending, (queries, k); and whether a passage that
        was not proposed can be as near as the last of them, (queries,).
    """
    highest = proposals.at_most()
    possible = highest >= proposals.at_least(k)[:, None]
    rows = np.nonzero(possible)[0]
    keys = np.full(possible.shape, _NONE)
    keys[possible] = _keys(index, queries, rows, proposals.positions[possible].astype(np.int64))
    work_on_all(lambda own: keys[own].sort(axis=1), shares_of(len(queries)))
    keys = keys[:, : -k - 1 : -1]
    worst, _ = _decode(keys[:, -1:], index)
    return keys, highest[:, -1] >= worst[:, 0]  # the last proposal bounds what was not proposed


def _all_keys(queries: Vectors, index: Index) -> Keys:
    """Return the keys of all passages of each query, ascending; (queries, passages)."""
    passages = len(index.passage_ids)
    rows, positions = np.divmod(np.arange(len(queries) * passages), passages)
    keys = _keys(index, queries, rows, positions).reshape(len(queries), passages)
    keys.sort(axis=1)
    return keys


def _search_again(queries: Vectors, worst: Vectors, index: Index, k: int, size: int) -> Keys:
    """Score all passages that reach `worst`, which k of each query do; return k keys each, descending.

    `size` passages are read at once.
    """
    import torch

    device = index.devices[0]
    asked, least = torch.from_numpy(queries).to(device), torch.from_numpy(worst).to(device)
    lengths = torch.from_numpy(lengths_of(queries).astype(np.float32)).to(device)
    errors = lengths * summation_error(index.dimensions)
    rows, keys = np.empty(0, np.int64), np.empty(0, np.uint64)
    for block in index.blocks(size, [device]):
        underflow = UNDERFLOW * index.dimensions * (1 + lengths + block.lengths.max())
        for passages, own, products in tiles(block.vectors, asked):
            products.addcmul_(block.lengths[passages, None], errors[own])
            near = (products >= least[own] - underflow[own]).nonzero().cpu().numpy()
            for pairs in np.array_split(near, 1 + len(near) // _PAIRS_AT_ONCE):
                positions = pairs[:, 0] + block.start + passages.start
                found = pairs[:, 1] + own.start
                rows = np.concatenate([rows, found])
                keys = np.concatenate([keys, _keys(index, queries, found, positions)])
                if len(rows) > 2 * len(queries) * k + _PAIRS_AT_ONCE:
                    rows, keys = _best_of_each(rows, keys, k)
    return _best_of_each(rows, keys, k)[1].reshape(len(queries), k)


def _best_of_each(rows: Positions, keys: Keys, k: int) -> tuple[Positions, Keys]:
    """Keep the k highest keys of each row, descending."""
    order = np.lexsort((~keys, rows))
    rows, keys = rows[order], keys[order]
    kept = np.arange(len(rows)) - np.searchsorted(rows, rows) < k
    return rows[kept], keys[kept]


def _keys(index: Index, queries: Vectors, rows: Positions, positions: Positions) -> Keys:
    """Score pairs of a query and a passage; return numbers that are ordered as they are ranked."""
    with np.errstate(over="ignore"):
        scores = index.products(queries, rows, positions).astype(np.float32)
    require_finite(scores)
    scores += np.float32(0)  # -0 becomes 0
    bits = scores.view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    return (ordered << np.uint64(32)) | (_LAST - index.tie_order[positions].astype(np.uint64))


def _decode(keys: Keys, index: Index) -> tuple[Vectors, Positions]:
    """Return the scores and positions that keys stand for."""
    ordered = (keys >> 32).astype(np.uint32)
    bits = np.where(ordered >> 31, ordered & np.uint32((1 << 31) - 1), ~ordered)
    of_tie = np.empty_like(index.tie_order)
    of_tie[index.tie_order] = np.arange(len(of_tie))
    return bits.view(np.float32), of_tie[(_LAST - (keys & _LAST)).astype(np.int64)]


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
    return run_of(query_ids, ranked(query_ids, queries, index, k, memory_gb, identical_ids), index)


class Ranked(NamedTuple):
    """The k + 1 nearest passages of each query, or fewer; each attribute is (queries, passages).

    Attributes:
        scores: in descending order.
        positions: in the index.
        ranks: from 1; that of a passage that is left out is 0.
    """

    scores: Vectors
    positions: Positions
    ranks: NDArray[np.int32]

    def of(self, queries: slice) -> "Ranked":
        """Return those of some queries."""
        return Ranked(self.scores[queries], self.positions[queries], self.ranks[queries])


def run_of(query_ids: pa.Array, found: Ranked, index: Index) -> pa.Table:
    """Make a run (see RUN) of ranked passages."""
    kept = found.ranks > 0
    columns = [
        query_ids.take(pa.array(np.nonzero(kept)[0])),
        index.passage_ids.take(pa.array(found.positions[kept])),
        found.scores[kept],
        found.ranks[kept],
    ]
    return pa.table(columns, schema=RUN)


def ranked(
    query_ids: pa.Array,
    queries: Vectors,
    index: Index,
    k: int,
    memory_gb: float,
    identical_ids: IdenticalIds,
) -> Ranked:
    """Rank as `search` does."""
    # Search one more, drop passages with the query's id, and keep the first k of the others.
    scores, positions = nearest(queries, index, k + 1, memory_gb)
    lookup = pc.SetLookupOptions(value_set=index.passage_ids)
    identical = pc.call_function("index_in", [query_ids], lookup)
    kept = positions != identical.fill_null(-1).to_numpy()[:, None]
    kept |= identical_ids == "keep"
    ranks = kept.cumsum(axis=1, dtype=np.int32)
    kept &= ranks <= k
    return Ranked(scores, positions, np.where(kept, ranks, 0).astype(np.int32))
