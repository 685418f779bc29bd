"""RM3: weights by hand, and what feedback finds."""

import pyarrow as pa
import pytest

from expandr_core.retrieval.bm25 import BM25, build_bm25
from expandr_core.retrieval.rm3 import HITS, TERMS, expand, expanded_queries

CORPUS = {"a": "moon dust lunar", "b": "lunar regolith", "c": "stone wall"}


def ranked(index: BM25, corpus: dict[str, str], query: str) -> list[str]:
    ids = pa.array(["q"])
    first = index.search(ids, [query], HITS)
    weights = expanded_queries(index, ["q"], [query], first, corpus)
    return index.search_weighted(ids, weights, 10)["passage_id"].to_pylist()


def test_a_passage_is_found_by_a_term_of_the_first_hit():
    index = build_bm25(pa.array(list(CORPUS)), CORPUS.values())
    assert index.search(pa.array(["q"]), ["dust"], 10)["passage_id"].to_pylist() == ["a"]
    assert ranked(index, CORPUS, "dust") == ["a", "b"]


def test_a_query_without_hits_finds_nothing():
    index = build_bm25(pa.array(list(CORPUS)), CORPUS.values())
    assert ranked(index, CORPUS, "unheard") == []


def test_the_weighted_query_scores_as_the_plain_one_if_all_weights_are_one():
    index = build_bm25(pa.array(list(CORPUS)), CORPUS.values())
    ids = pa.array(["q"])
    [terms] = index.term_ids(["lunar dust"])
    plain = index.search(ids, ["lunar dust"], 10)
    weighted = index.search_weighted(ids, [dict.fromkeys(terms, 1.0)], 10)
    assert weighted["passage_id"] == plain["passage_id"]
    assert weighted["score"].to_pylist() == pytest.approx(plain["score"].to_pylist())


def test_only_the_likeliest_terms_of_the_hits_are_added():
    hit = [term for term in range(TERMS + 5) for _ in range(TERMS + 5 - term)]
    weights = expand([99], [(hit, 1.0)])
    assert set(weights) == {99, *range(TERMS)}
    assert weights[99] == 0.5
    assert sum(weights.values()) == pytest.approx(1)
