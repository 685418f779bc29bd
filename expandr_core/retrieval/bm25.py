"""BM25 with bm25s: an external baseline that no training affects.

Scores are Lucene's (BM25 without the factor k1 + 1), on title and text as one field. Tokens are runs
of two or more letters or digits, lowercased, without Lucene's English stop words, stemmed by the English
Snowball stemmer. All this, k1 = 1.5 and b = 0.75 are defaults of bm25s; they reproduce the published
baselines of six real collections within 0.3 points (tests/core/data/test_real_collections.py), while
Anserini's k1 = 0.9 and b = 0.4 lose up to 3 points. Scripts without spaces are cut into pairs of
characters instead (`expandr_core.data.terms`); other languages have their stemmers and stop words.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expandr_core.data.terms import terms
from expandr_core.errors import DataError
from expandr_core.options.data import IdenticalIds
from expandr_core.options.evaluation import Language
from expandr_core.records import RUN
from expandr_core.retrieval.index import tie_order

_SHORTEST = 2  # characters of a word
_STOP_WORDS = (  # the languages for which bm25s has some
    *("danish", "dutch", "english", "french", "german", "italian", "norwegian", "portuguese"),
    *("russian", "spanish", "swedish", "turkish"),
)


class BM25:
    """An indexed corpus.

    Attributes:
        passage_ids: (passages,)
    """

    def __init__(
        self,
        passage_ids: pa.Array,
        passages: Iterable[str],
        k1: float = 1.5,
        b: float = 0.75,
        language: Language = "english",
    ):
        """Index the passages.

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
        import Stemmer
        from bm25s.tokenization import Tokenizer

        self.passage_ids = passage_ids
        self._order = tie_order(passage_ids)
        stop_words: Any = language if language in _STOP_WORDS else None
        stemmer: Any = None if language == "none" else Stemmer.Stemmer(language)
        splitter = partial(terms, shortest=_SHORTEST)
        self._tokenizer = Tokenizer(splitter=splitter, stopwords=stop_words, stemmer=stemmer)
        tokens = list(self._tokens(passages, update_vocabulary=True))
        vocabulary = self._tokenizer.get_vocab_dict()
        if not vocabulary:
            raise DataError("no passage of the corpus has a word; BM25 has nothing to search")
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene")
        self._index.index((tokens, vocabulary), create_empty_token=False, show_progress=False)

    def _tokens(self, texts: Iterable[str], update_vocabulary: bool) -> Iterator[list[int]]:
        """Yield the term ids of each text, without unknown terms unless they update the vocabulary."""
        stream: Any = texts  # bm25s annotates a list, but only iterates
        return self._tokenizer.streaming_tokenize(stream, update_vocabulary, allow_empty=False)

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
        runs = [RUN.empty_table()]
        tokens = self._tokens(queries, update_vocabulary=False)
        for query_id, query_tokens in zip(query_ids, tokens, strict=True):
            if not query_tokens:
                continue
            scores = self._index.get_scores_from_ids(query_tokens)
            hits = np.flatnonzero(scores > 0)
            hits = hits[best(scores[hits], self._order[hits], k + 1)]
            ids = self.passage_ids.take(pa.array(hits))
            kept = np.array([passage_id != query_id for passage_id in ids], dtype=bool)
            kept |= identical_ids == "keep"
            ids, hits = ids.filter(pa.array(kept))[:k], hits[kept][:k]
            columns = [
                pa.repeat(query_id, len(hits)),
                ids,
                scores[hits],
                np.arange(1, len(hits) + 1, dtype=np.int32),
            ]
            runs.append(pa.table(columns, schema=RUN))
        return pa.concat_tables(runs)


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
