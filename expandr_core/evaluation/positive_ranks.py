"""How well a vector finds the positives of its query, in the whole corpus.

A positive's rank is 1 + the number of passages with a larger inner product; the query's positives, and
passages with the text of one, do not count. Products that differ by no more than the encoder's rounding
are equal, and equal ones do not count as larger. A positive that is not in the corpus is ranked as if it
were.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expandr_core.data.tables import positions_of
from expandr_core.encoders.encode import Encoder, Vectors, unit
from expandr_core.encoders.vector_cache import PASSAGES, digests_of, read_digests
from expandr_core.options.retriever import FusionOptions
from expandr_core.preferences.candidates import Encoded, Measures, Row, fuse_each
from expandr_core.retrieval.counting import count_above, vectors_at
from expandr_core.retrieval.index import open_index

Ranks = NDArray[np.int64]
Owners = NDArray[np.int64]
NONE = np.iinfo(np.int64).max // 2  # rank of a positive that a query does not have


class Positives(NamedTuple):
    """The positives of one query.

    Attributes:
        vectors: (positives, dimensions), as the corpus has them, or encoded if it does not.
        ignored: positions in the corpus of these and of all passages with their id or text.
        absent: how many the corpus does not have.
    """

    vectors: Vectors
    ignored: list[int]
    absent: int


class Corpus:
    """An encoded corpus in which positives are ranked."""

    def __init__(self, folders: Sequence[Path], memory_gb: float, device: str):
        """Open the shards of an encoding; their folders must exist as long as the corpus is used.

        Args:
            folders: the shards.
            memory_gb: limit for the vectors and products of a count.
            device: where products are computed: "cpu" or "cuda".
        """
        self.index = open_index(folders, device)
        self._memory_gb = memory_gb
        self._digests = np.concatenate([read_digests(folder / PASSAGES) for folder in folders])
        self._by_digest = np.argsort(self._digests[:, 0], kind="stable")
        self._sorted = self._digests[self._by_digest, 0]

    def find(self, positives: list[list[Row]], encoder: Encoder) -> list[Positives]:
        """Find the positives of some queries in the corpus, by id and by text.

        Args:
            positives: rows of each query, with positive_id and positive (the text).
            encoder: encodes the positives that the corpus does not have.
        """
        rows = [row for own in positives for row in own]
        texts = [row["positive"] for row in rows]
        ids = pa.array([row["positive_id"] for row in rows], pa.large_string())
        by_id = positions_of(ids, self.index.passage_ids)
        same_text = self._with_content(digests_of(texts))
        same_content = self._with_content(self._digests[by_id])  # as that of the id
        where = [
            own if own >= 0 else min(same, default=-1)
            for own, same in zip(by_id.tolist(), same_text, strict=True)
        ]
        absent = [row for row, position in enumerate(where) if position < 0]
        vectors = vectors_at(self.index, np.array(where, np.int64))
        vectors[absent] = encoder.encode_passages([texts[row] for row in absent])
        found, start = [], 0
        for own in positives:
            numbers = range(start, start + len(own))
            start += len(own)
            # two rows of one passage are one positive
            distinct = list({where[n] if where[n] >= 0 else texts[n]: n for n in numbers}.values())
            ignored = {position for n in numbers for position in same_text[n]}
            ignored |= {p for n in numbers if by_id[n] >= 0 for p in same_content[n]}
            missing = sum(where[n] < 0 for n in distinct)
            found.append(Positives(vectors[distinct], sorted(ignored), missing))
        return found

    def _with_content(self, digests: Any) -> list[list[int]]:
        """Return the positions of all passages with each content."""
        first, last = (
            np.searchsorted(self._sorted, digests[:, 0], side) for side in ("left", "right")
        )
        found = []
        for digest, start, end in zip(digests, first, last, strict=True):
            positions = self._by_digest[start:end]
            found.append(positions[(self._digests[positions] == digest).all(axis=1)].tolist())
        return found

    def ranks(
        self,
        queries: list[tuple[Vectors, Owners]],
        positives: list[list[Positives]],
        encoder: Encoder,
    ) -> list[Ranks]:
        """Rank the positives of each query, the best first, in one pass over the corpus.

        Args:
            queries: of each shard the vectors, (queries, dimensions), and the owner of each: the
                number of its positives.
            positives: of each shard, by owner.
            encoder: made the vectors.

        Returns:
            For each shard (queries, most positives) ranks from 1, NONE where a query has fewer.
        """
        most = max((len(each.vectors) for own in positives for each in own), default=1)
        limits = [
            np.array(
                [
                    _limits(vector, own[owner].vectors, most, encoder.rounding)
                    for vector, owner in zip(*each, strict=True)
                ]
            )
            for each, own in zip(queries, positives, strict=True)
        ]
        ignored = [
            own[owner].ignored
            for (_, owners), own in zip(queries, positives, strict=True)
            for owner in owners
        ]
        pairs = np.stack(
            [
                np.repeat(np.arange(len(ignored)), [len(each) for each in ignored]),
                np.array([position for each in ignored for position in each], np.int64),
            ],
            axis=1,
        )
        vectors = np.concatenate([each for each, _ in queries])
        joined = np.concatenate([each.reshape(-1, most) for each in limits])
        above = count_above(vectors, joined, pairs, self.index, self._memory_gb)
        above[np.isnan(joined)] = NONE
        ranks = np.sort(above, axis=1) + 1 + np.arange(most)
        return np.split(ranks, np.cumsum([len(each) for each, _ in queries])[:-1])


def _limits(vector: Vectors, positives: Vectors, most: int, rounding: float) -> NDArray[np.float64]:
    """Return the inner products above which a passage is nearer than each positive; (most,)."""
    exact, own = vector.astype(np.float64), positives.astype(np.float64)
    limits = np.full(most, np.nan)
    lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(exact)
    limits[: len(own)] = np.einsum("pd,d->p", own, exact) + rounding * lengths
    return limits


def measure_ranks(
    shards: list[Encoded], encoder: Encoder, options: FusionOptions, corpus: Corpus, k: int = 0
) -> list[tuple[Vectors, Measures]]:
    """Measure by ranks in the corpus how well each query finds its positives.

    Args:
        shards: their counts of positives are added.
        encoder: made their vectors, and those of the corpus.
        options: how queries are fused with candidates.
        corpus: read once.
        k: for nDCG@k; 0: 1/rank of the best positive.

    Returns:
        For each shard the vectors of its queries alone, then of its fused queries, (queries +
        candidates, dimensions); and the measure of each.
    """
    fused = [fuse_each(shard, encoder, options) for shard in shards]
    found = [corpus.find(shard.positives_of, encoder) for shard in shards]
    for shard, positives in zip(shards, found, strict=True):
        shard.counts["positives"] += sum(len(each.vectors) for each in positives)
        shard.counts["positives/not in the corpus"] += sum(each.absent for each in positives)
    return [
        (vectors, ndcg(ranks, k) if k else reciprocal_rank(ranks))
        for (vectors, _), ranks in zip(fused, corpus.ranks(fused, found, encoder), strict=True)
    ]


def measure_cosines(
    shard: Encoded, encoder: Encoder, options: FusionOptions
) -> tuple[Vectors, Measures]:
    """Measure how near each query is to the nearest of its positives, by the cosine.

    Returns:
        As `measure_ranks`, for one shard.
    """
    vectors, owners = fuse_each(shard, encoder, options)
    texts = list({row["positive"]: None for own in shard.positives_of for row in own})
    encoded = unit(encoder.encode_passages(texts)).astype(np.float64)
    row_of = {text: row for row, text in enumerate(texts)}
    rows = [[row_of[row["positive"]] for row in own] for own in shard.positives_of]
    queries = unit(vectors).astype(np.float64)
    cosines = [
        np.einsum("pd,d->p", encoded[rows[owner]], query).max()
        for query, owner in zip(queries, owners, strict=True)
    ]
    return vectors, np.array(cosines)


def reciprocal_rank(ranks: Ranks) -> NDArray[np.float64]:
    """Return 1 / the best rank of each row.

    >>> reciprocal_rank(np.array([[2, 5], [1, NONE]])).tolist()
    [0.5, 1.0]
    """
    return 1 / ranks[:, 0]


def ndcg(ranks: Ranks, k: int) -> NDArray[np.float64]:
    """Return nDCG@k of each row, all positives being of grade 1.

    Args:
        ranks: (rows, positives) in ascending order, NONE where a row has fewer positives.
        k: ranks from the first that count.

    >>> ndcg(np.array([[1, 2], [1, NONE], [2, NONE], [4, NONE]]), k=3).round(3).tolist()
    [1.0, 1.0, 0.631, 0.0]
    """
    discounts = 1 / np.log2(1 + np.arange(1, 1 + k))
    gains = np.where(ranks <= k, discounts[np.minimum(ranks, len(discounts)) - 1], 0)
    own = np.minimum((ranks < NONE).sum(axis=1), k)
    return gains.sum(axis=1) / np.cumsum(discounts)[own - 1]
