"""Search with expanded queries: with one vector each, or with a fusion of several rankings.

Reciprocal rank fusion (Cormack et al., 2009; for expansions Exp4Fuse: Liu and Zhang, 2025) searches with
the query and with each of its expansions, and adds up 1 / (60 + rank). Each of the rankings is as deep
as the result, and leaves out the passage with the query's id as the result does. Sums do not depend on
the order of the rankings; as elsewhere, scores are rounded to float32 before equal ones are ordered as
trec_eval does.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expandr_core.encoders.encode import Encoder, Vectors, encode_expanded
from expandr_core.options.evaluation import RankingOptions
from expandr_core.options.retriever import FusionOptions
from expandr_core.records import RUN
from expandr_core.retrieval.exact import Ranked, queries_at_once, ranked, run_of
from expandr_core.retrieval.index import Index, Positions

RRF_CONSTANT = 60
ENCODED_AT_ONCE = 256  # queries


@dataclass(frozen=True)
class ExpandedSearch:
    """A corpus that is searched with expanded queries.

    Attributes:
        encoder: of the corpus's retriever.
        index: the encoded corpus.
        fusion: how a query and its expansions are searched with.
        ranking: how deep to rank, and what to do with identical ids.
        memory_gb: see `nearest`.
    """

    encoder: Encoder
    index: Index
    fusion: FusionOptions
    ranking: RankingOptions
    memory_gb: float

    def search(
        self, blocks: Iterable[pa.Table], report: Callable[[int], None]
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Rank the passages for blocks of queries, many of which share a pass over the corpus.

        Args:
            blocks: query_id, query, and expansions (a list of texts, which may be empty).
            report: called with the number of queries that are encoded.

        Yields:
            Each block with its run (see RUN): the queries in their order, ranks from 1.
        """
        most = queries_at_once(self.index, self.ranking.depth + 1, self.memory_gb)
        held: list[tuple[pa.Table, NDArray[np.int64], Vectors]] = []
        vectors, done = 0, 0
        for block in blocks:
            encoded = self._encode(block, lambda count: report(done + count))  # noqa: B023
            if held and vectors + len(encoded[1]) > most:
                yield from self._search(held)
                held, vectors = [], 0
            held.append((block, *encoded))
            vectors += len(encoded[1])
            done += len(block)
        if held:
            yield from self._search(held)

    def _encode(
        self, block: pa.Table, report: Callable[[int], None]
    ) -> tuple[NDArray[np.int64], Vectors]:
        """Return how many vectors each query searches with, and the vectors."""
        queries, expansions = block["query"].to_pylist(), block["expansions"].to_pylist()
        if self._fused:
            alone = self.fusion.expansion_weight == 1
            texts = [
                [*([] if alone and own else [[]]), *([text] for text in own)] for own in expansions
            ]
            return np.array([len(own) for own in texts]), self._encode_all(queries, texts, report)
        vectors = np.empty((len(queries), self.encoder.dimensions), dtype=np.float32)
        for start in range(0, len(queries), ENCODED_AT_ONCE):
            part = slice(start, start + ENCODED_AT_ONCE)
            vectors[part] = encode_expanded(
                self.encoder, queries[part], expansions[part], self.fusion
            )
            report(min(part.stop, len(queries)))
        return np.ones(len(queries), np.int64), vectors

    @property
    def _fused(self) -> bool:
        return self.fusion.method == "rrf" and self.fusion.expansion_weight > 0

    def _search(
        self, held: list[tuple[pa.Table, NDArray[np.int64], Vectors]]
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Search for the vectors of some blocks together, and cut the result into the blocks again."""
        query_ids = [block["query_id"].combine_chunks() for block, _, _ in held]
        owners = [
            ids.take(pa.array(np.repeat(np.arange(len(ids)), counts)))
            for ids, (_, counts, _) in zip(query_ids, held, strict=True)
        ]
        found = ranked(
            pa.concat_arrays(owners),
            np.concatenate([vectors for _, _, vectors in held]),
            self.index,
            self.ranking.depth,
            self.memory_gb,
            self.ranking.identical_ids,
        )
        start = 0
        for ids, (block, counts, vectors) in zip(query_ids, held, strict=True):
            own = found.of(slice(start, start + len(vectors)))
            start += len(vectors)
            yield (
                block,
                self._fuse(ids, counts, own) if self._fused else run_of(ids, own, self.index),
            )

    def _fuse(self, query_ids: pa.Array, counts: NDArray[np.int64], found: Ranked) -> pa.Table:
        """Fuse the ranks that the texts of each query find."""
        runs = [RUN.empty_table()]
        starts = np.cumsum(counts) - counts
        for query_id, start, count in zip(query_ids, starts, counts, strict=True):
            rows = slice(start, start + count)
            kept = found.ranks[rows] > 0
            hits, scores = fuse_ranks(
                found.positions[rows][kept],
                found.ranks[rows][kept],
                self.index.tie_order,
                self.ranking.depth,
            )
            columns = [
                pa.repeat(query_id, len(hits)),
                self.index.passage_ids.take(pa.array(hits)),
                scores,
                np.arange(1, len(hits) + 1, dtype=np.int32),
            ]
            runs.append(pa.table(columns, schema=RUN))
        return pa.concat_tables(runs)

    def _encode_all(
        self, queries: list[str], texts: list[list[list[str]]], report: Callable[[int], None]
    ) -> Vectors:
        """Encode each query's texts by themselves: (texts, dimensions); [] stands for the query."""
        single = FusionOptions(expansion_weight=1)
        parts = []
        for start in range(0, len(queries), ENCODED_AT_ONCE):
            part = slice(start, start + ENCODED_AT_ONCE)
            own = texts[part]
            repeated = [q for q, of in zip(queries[part], own, strict=True) for _ in of]
            flat = [text for of in own for text in of]
            parts.append(encode_expanded(self.encoder, repeated, flat, single))
            report(min(part.stop, len(queries)))
        return np.concatenate(parts)


def fuse_ranks(
    positions: Positions, ranks: NDArray[np.int32], order: Positions, k: int
) -> tuple[Positions, Vectors]:
    """Fuse rankings by reciprocal rank.

    Args:
        positions: (hits of all rankings,) position of each hit in the index.
        ranks: (hits of all rankings,) its rank in its ranking, from 1.
        order: see `tie_order`.
        k: passages to keep.

    Returns:
        Positions of the best passages, and their scores; both (at most k,).

    The rankings 0, 1 and 1, 2: passage 1 has 1/62 + 1/61.

    >>> positions, ranks = np.array([0, 1, 1, 2]), np.array([1, 2, 1, 2], dtype=np.int32)
    >>> hits, scores = fuse_ranks(positions, ranks, np.array([2, 1, 0]), 2)
    >>> hits.tolist(), [round(float(score), 6) for score in scores]
    ([1, 0], [0.032522, 0.016393])
    """
    if not len(positions):
        return positions, np.empty(0, dtype=np.float32)
    by = np.lexsort((ranks, positions))  # equal ranks are added up in the same order
    positions, shares = positions[by], 1 / (RRF_CONSTANT + ranks[by])
    found, first = np.unique(positions, return_index=True)
    scores = np.add.reduceat(shares, first).astype(np.float32)
    best = np.lexsort((order[found], -scores))[:k]
    return found[best], scores[best]
