"""BM25 with bm25s: an external baseline that no training affects.

Scores are Lucene's (BM25 without the factor k1 + 1), on title and text as one field. Tokens are runs
of two or more letters or digits, lowercased, without Lucene's English stop words, stemmed by the English
Snowball stemmer. All this, k1 = 1.5 and b = 0.75 are defaults of bm25s; they reproduce the published
baselines of six real collections within 0.3 points (tests/core/data/test_real_collections.py), while
Anserini's k1 = 0.9 and b = 0.4 lose up to 3 points. Scripts without spaces are cut into pairs of
characters instead (`expandr_core.data.terms`); other languages have their stemmers and stop words.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expandr_core.data.terms import terms
from expandr_core.errors import DataError
from expandr_core.options.data import IdenticalIds
from expandr_core.options.evaluation import Language
from expandr_core.records import RUN
from expandr_core.retrieval.index import tie_order

if TYPE_CHECKING:
    import bm25s
    from bm25s.tokenization import Tokenizer

PASSAGE_IDS, TERMS, LANGUAGE = "passage_id.parquet", "term.parquet", "language.txt"
_TERMS_OF_BM25S = "vocab.index.json"
_SHORTEST = 2  # characters of a word
_STOP_WORDS = (  # the languages for which bm25s has some
    *("danish", "dutch", "english", "french", "german", "italian", "norwegian", "portuguese"),
    *("russian", "spanish", "swedish", "turkish"),
)


@dataclass(frozen=True)
class BM25:
    """An indexed corpus.

    Attributes:
        passage_ids: (passages,)
        language: of the stemmer, and of the stop words if bm25s has some.
        index: scores by term and passage; mapped into memory if it was opened.
        tokenizer: cuts texts into terms, and knows the corpus's terms.
    """

    passage_ids: pa.Array
    language: Language
    index: "bm25s.BM25"
    tokenizer: "Tokenizer"

    @property
    def terms(self) -> list[str]:
        """The corpus's terms; a term's id is its position."""
        return list(self.tokenizer.get_vocab_dict())

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return tie_order(self.passage_ids)

    def save(self, folder: Path) -> None:
        """Write the index as arrays and tables, without pickle; `open_bm25` reads it."""
        self.index.save(folder, show_progress=False, allow_pickle=False)
        (folder / _TERMS_OF_BM25S).unlink()  # its bytes depend on which JSON library is there
        for path, values in ((PASSAGE_IDS, self.passage_ids), (TERMS, self.terms)):
            table = pa.table({path.removesuffix(".parquet"): pa.array(values, pa.string())})
            pq.write_table(table, folder / path, compression="zstd")
        (folder / LANGUAGE).write_text(self.language)

    def search(
        self,
        query_ids: pa.Array,
        queries: Sequence[str],
        k: int,
        identical_ids: IdenticalIds = "ignore",
    ) -> pa.Table:
        """Rank the k best passages of each query that share a term with it.

        Ties and passages with the query's id are treated as in `exact.search`.

        Returns:
            A run: the queries in their order, ranks from 1. A query without hits has no rows.
        """
        tokens = self.term_ids(queries)
        scores = (self.index.get_scores_from_ids(ids) if ids else None for ids in tokens)
        return self._rank(query_ids, scores, k, identical_ids)

    def search_weighted(
        self,
        query_ids: pa.Array,
        queries: Iterable[Mapping[int, float]],
        k: int,
        identical_ids: IdenticalIds = "ignore",
    ) -> pa.Table:
        """Rank as `search` does, for queries that give weights to terms.

        Args:
            query_ids: (queries,)
            queries: weights by the terms' ids.
            k: passages of each query.
            identical_ids: as in `search`.
        """
        scores = (self._weighted_scores(weights) if weights else None for weights in queries)
        return self._rank(query_ids, scores, k, identical_ids)

    def term_ids(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Yield the ids of each text's terms that the corpus has, in their order."""
        return _term_ids(self.tokenizer, texts, update_vocabulary=False)

    def _weighted_scores(self, weights: Mapping[int, float]) -> NDArray[np.float32]:
        scores = np.zeros(len(self.passage_ids), np.float32)
        for term, weight in weights.items():
            scores += np.float32(weight) * self.index.get_scores_from_ids([term])
        return scores

    def _rank(
        self,
        query_ids: pa.Array,
        scores_of: Iterable[NDArray[np.float32] | None],
        k: int,
        identical_ids: IdenticalIds,
    ) -> pa.Table:
        runs = [RUN.empty_table()]
        for query_id, scores in zip(query_ids, scores_of, strict=True):
            if scores is None:
                continue
            hits = np.flatnonzero(scores > 0)
            hits = hits[best(scores[hits], self._order[hits], k + 1)]
            ids = self.passage_ids.take(pa.array(hits))
            other = pc.not_equal(ids, query_id)  # pyrefly: ignore[missing-attribute]
            kept = np.asarray(other) | (identical_ids == "keep")
            ids, hits = ids.filter(pa.array(kept))[:k], hits[kept][:k]
            ranks = np.arange(1, len(hits) + 1, dtype=np.int32)
            columns = [pa.repeat(query_id, len(hits)), ids, scores[hits], ranks]
            runs.append(pa.table(columns, schema=RUN))
        return pa.concat_tables(runs)


def build_bm25(
    passage_ids: pa.Array,
    passages: Iterable[str],
    k1: float = 1.5,
    b: float = 0.75,
    language: Language = "english",
) -> BM25:
    """Index passages.

    Args:
        passage_ids: (passages,)
        passages: their texts, in the same order.
        k1: how slowly repetitions of a term saturate.
        b: how much long passages are penalised, from 0 to 1.
        language: of the stemmer, and of the stop words if bm25s has some.

    Raises:
        DataError: if no passage has a term.
    """
    import bm25s

    tokenizer = _tokenizer(language)
    tokens = list(_term_ids(tokenizer, passages, update_vocabulary=True))
    vocabulary = tokenizer.get_vocab_dict()
    if not vocabulary:
        raise DataError("no passage of the corpus has a word; BM25 has nothing to search")
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG, and says what it is doing
    index = bm25s.BM25(k1=k1, b=b, method="lucene")
    index.index((tokens, vocabulary), create_empty_token=False, show_progress=False)
    return BM25(passage_ids, language, index, tokenizer)


def open_bm25(folder: Path) -> BM25:
    """Open an index that `BM25.save` wrote; its arrays are mapped into memory."""
    import bm25s

    ids = pq.read_table(folder / PASSAGE_IDS)[0].combine_chunks()
    language: Any = (folder / LANGUAGE).read_text()
    index = bm25s.BM25.load(
        folder, mmap=True, allow_pickle=False, load_vocab=False, show_progress=False
    )
    tokenizer = _tokenizer(language)
    terms_ = pq.read_table(folder / TERMS)[0].to_pylist()
    ids_of = dict(zip(terms_, range(len(terms_)), strict=True))
    if tokenizer.stemmer is None:
        tokenizer.word_to_id = ids_of
    else:
        tokenizer.stem_to_sid = ids_of  # words are stemmed as they come
    return BM25(ids, language, index, tokenizer)


def _tokenizer(language: Language) -> "Tokenizer":
    import Stemmer
    from bm25s.tokenization import Tokenizer

    stop_words: Any = language if language in _STOP_WORDS else None
    stemmer: Any = None if language == "none" else Stemmer.Stemmer(language)
    splitter = partial(terms, shortest=_SHORTEST)
    return Tokenizer(splitter=splitter, stopwords=stop_words, stemmer=stemmer)


def _term_ids(
    tokenizer: "Tokenizer", texts: Iterable[str], update_vocabulary: bool
) -> Iterator[list[int]]:
    """Yield the term ids of each text, without unknown terms unless they update the vocabulary."""
    stream: Any = texts  # bm25s annotates a list, but only iterates
    return tokenizer.streaming_tokenize(stream, update_vocabulary, allow_empty=False)


def best(scores: NDArray[np.float32], order: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Return the positions of the k largest scores, best first, ties by `order`.

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
    positions = np.concatenate([above, equal])
    return positions[np.lexsort((order[positions], -scores[positions]))]
