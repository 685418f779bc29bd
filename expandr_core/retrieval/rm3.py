"""RM3: a query with the likeliest terms of its first hits, the classical expansion without an LLM.

The relevance model is the mean of the hits' term distributions, weighted by their scores; its ten
likeliest terms are half of the expanded query (Abdul-Jaleel et al., 2004; the values are Anserini's).
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa

from expandr_core.retrieval.bm25 import BM25

HITS, TERMS, QUERY_SHARE = 10, 10, 0.5


def expanded_queries(
    index: BM25,
    query_ids: Sequence[str],
    queries: Sequence[str],
    run: pa.Table,
    corpus: Mapping[str, str],
) -> list[dict[int, float]]:
    """Return the terms' weights in each query, expanded by its first hits.

    Args:
        index: that is searched.
        query_ids: (queries,)
        queries: (queries,)
        run: of the queries.
        corpus: texts of the first `HITS` passages of each query, by id.
    """
    terms = dict(zip(corpus, index.term_ids(corpus.values()), strict=True))
    hits: dict[str, list[tuple[list[int], float]]] = defaultdict(list)
    columns = (run[name].to_pylist() for name in ("query_id", "passage_id", "score", "rank"))
    for query_id, passage_id, score, rank in zip(*columns, strict=True):
        if rank <= HITS:
            hits[query_id].append((terms[passage_id], score))
    own = index.term_ids(queries)
    return [expand(ids, hits[id_]) for id_, ids in zip(query_ids, own, strict=True)]


def expand(query: Sequence[int], hits: Sequence[tuple[Sequence[int], float]]) -> dict[int, float]:
    """Return the weights of the terms of a query and of its hits' relevance model.

    Args:
        query: its terms.
        hits: terms and score of each.

    The first hit has three quarters of the scores, and the term 7 is half of it:

    >>> expand([7], [([7, 8], 3.0), ([9], 1.0)])
    {7: 0.6875, 8: 0.1875, 9: 0.125}
    """
    if not hits:
        return _shares(Counter(query))
    relevance: dict[int, float] = defaultdict(float)
    for terms, score in hits:
        for term, share in _shares(Counter(terms)).items():
            relevance[term] += score * share
    likeliest = sorted(relevance.items(), key=lambda item: (-item[1], item[0]))[:TERMS]
    own, feedback = _shares(Counter(query)), _shares(dict(likeliest))
    return {
        term: QUERY_SHARE * own.get(term, 0) + (1 - QUERY_SHARE) * feedback.get(term, 0)
        for term in own | feedback
    }


def _shares(values: Mapping[int, float]) -> dict[int, float]:
    total = sum(values.values())
    return {term: value / total for term, value in values.items()}
