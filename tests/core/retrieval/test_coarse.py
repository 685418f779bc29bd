"""Coarse proposals are tried only where they settle which passages are the nearest."""

import numpy as np
import pyarrow as pa
import pytest

from expandr_core.retrieval.coarse import int8_suffices
from expandr_core.retrieval.exact import nearest
from expandr_core.retrieval.index import Index, index_in_memory
from expandr_core.retrieval.proposals import propose

PASSAGES, DIMENSIONS, WANTED, K = 70_000, 8, 200, 10


def index_of(vectors: np.ndarray) -> Index:
    return index_in_memory(pa.array([f"p{number:05}" for number in range(len(vectors))]), vectors)


@pytest.fixture(scope="module")
def corpus() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(PASSAGES, DIMENSIONS)).astype(np.float16)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(1024, DIMENSIONS)).astype(np.float32)


def test_they_are_where_products_differ_by_more_than_their_error(corpus, queries):
    assert int8_suffices(queries, index_of(corpus), K, WANTED, 1.0)


@pytest.mark.parametrize("copies", [1000, PASSAGES])
def test_they_are_not_where_many_passages_are_alike(corpus, queries, copies):
    """The nearest are among many, or all, that eight bits cannot tell apart."""
    alike = corpus * np.float16(1e-3)
    alike[:: PASSAGES // copies] += np.float16(1)
    assert not int8_suffices(np.abs(queries), index_of(alike), K, WANTED, 1.0)


def test_they_are_not_for_few_queries_small_corpora_deep_rankings_or_long_vectors(corpus, queries):
    index = index_of(corpus)
    assert not int8_suffices(queries[:1023], index, K, WANTED, 1.0)
    assert not int8_suffices(queries, index, 0, WANTED, 1.0)
    assert not int8_suffices(queries, index_of(corpus[:40_000]), K, WANTED, 1.0)
    assert not int8_suffices(queries, index, 100, 300, 1.0)
    assert not int8_suffices(queries, index_of(corpus.astype(np.float32)), K, WANTED, 1.0)


def test_what_they_leave_open_is_searched_in_single_precision(corpus, queries):
    """Passages are so alike that no query is settled in eight bits."""
    index = index_of(corpus[:3000] * np.float16(1e-3) + np.float16(1))
    found = [nearest(queries[:50], index, K, 1.0, proposer) for proposer in ("int8", "float32")]
    for coarse, single in zip(*found, strict=True):
        assert np.array_equal(coarse, single)
    proposals = propose(queries[:50], index, WANTED, 1.0, "int8")
    assert (proposals.at_most()[:, -1] >= found[1][0][:, -1]).all()


def test_proposals_in_eight_bits_are_those_of_integers(corpus, queries):
    """Their products are exact multiples of the scales of a query and a passage."""
    proposals = propose(queries[:5], index_of(corpus[:500]), 500, 1.0, "int8")
    scales = [
        np.abs(each.astype(np.float32)).max(axis=1) / np.float32(127)
        for each in (queries[:5], corpus[:500])
    ]
    steps = proposals.products / scales[0][:, None] / scales[1][proposals.positions]
    assert np.abs(steps - steps.round()).max() < 0.02
    assert np.abs(steps).max() > 1000
