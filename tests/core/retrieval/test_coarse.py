"""Coarse proposals are tried only where they settle which passages are the nearest."""

import numpy as np
import pyarrow as pa
import pytest

from expandr_core.retrieval.coarse import most_proposals, plan
from expandr_core.retrieval.exact import nearest
from expandr_core.retrieval.index import Index, index_in_memory
from expandr_core.retrieval.products import integers_are_exact, quickest_floats
from expandr_core.retrieval.proposals import propose

PASSAGES, DIMENSIONS, WANTED, K = 70_000, 8, 200, 10

EXACT = pytest.mark.skipif(not integers_are_exact(), reason="this processor has no VNNI")


def index_of(vectors: np.ndarray) -> Index:
    return index_in_memory(pa.array([f"p{number:05}" for number in range(len(vectors))]), vectors)


@pytest.fixture(scope="module")
def corpus() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(PASSAGES, DIMENSIONS)).astype(np.float16)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(1024, DIMENSIONS)).astype(np.float32)


def test_integers_propose_where_products_differ_by_more_than_their_error(corpus, queries):
    found = plan(queries, index_of(corpus), K, 1.0, "int8")
    assert found.proposer == "int8"
    assert K < found.proposals <= most_proposals(K)
    long = index_of(corpus.astype(np.float32) * np.float32(1e15))
    assert plan(queries, long, K, 1.0, "int8").proposer == "int8"


@pytest.mark.parametrize(
    ("coarse", "copies"),
    [("int8", 5000), ("int8", PASSAGES), ("bfloat16", 1000), ("bfloat16", PASSAGES)],
)
def test_coarse_products_do_not_propose_where_many_passages_are_alike(
    corpus, queries, coarse, copies
):
    """The nearest are among many, or all, that they cannot tell apart."""
    alike = corpus * np.float16(1e-3)
    alike[:: PASSAGES // copies] += np.float16(1)
    assert plan(np.abs(queries), index_of(alike), K, 1.0, coarse).proposer == "float32"


def test_floats_propose_for_few_queries_small_corpora_and_deep_rankings(corpus, queries):
    index, floats = index_of(corpus), quickest_floats("cpu")
    assert plan(queries[:1023], index, K, 1.0, "int8") == (floats, most_proposals(K))
    assert plan(queries, index, 0, 1.0, "int8").proposer == floats
    assert plan(queries, index_of(corpus[:40_000]), K, 1.0, "int8").proposer == floats
    assert plan(queries, index, 2000, 1.0, "int8").proposer != "int8"
    assert plan(queries[:5], index, K, 1.0, "bfloat16") == ("bfloat16", most_proposals(K))


@pytest.mark.parametrize("quickest", ["bfloat16", "float32", "faiss"])
def test_deep_rankings_take_as_many_proposals_as_settle_them(corpus, queries, quickest):
    """And not twice as many as are wanted."""
    index, depth = index_of(corpus), 2000
    found = plan(queries, index, depth, 1.0, quickest)
    assert found.proposer == quickest
    assert depth < found.proposals < 1.5 * depth
    proposals = propose(queries[:50], index, found.proposals, 1.0, quickest)
    unsettled = proposals.at_most()[:, -1] >= proposals.at_least(depth)
    assert unsettled.mean() < 0.2


@EXACT
def test_passages_that_integers_cannot_tell_apart_are_searched_alike(corpus, queries):
    index = index_of(corpus[:3000] * np.float16(1e-3) + np.float16(1))
    found = [nearest(queries[:50], index, K, 1.0, proposer) for proposer in ("int8", "float32")]
    for coarse, single in zip(*found, strict=True):
        assert np.array_equal(coarse, single)


@EXACT
def test_integers_propose_what_single_precision_does(corpus, queries):
    """All that they find is multiplied again, whether as pairs or as whole tiles."""
    index = index_of(corpus[:9000])
    integers, floats = (
        propose(queries[:70], index, WANTED, 1.0, own) for own in ("int8", "float32")
    )
    assert np.abs(integers.products - floats.products).max() < 1e-5
    assert np.array_equal(integers.errors, floats.errors)
