"""Proposals in low precision change no result: sorting everything gives the same bits."""

import itertools
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expandr_core.errors import DataError
from expandr_core.retrieval import exact, proposals
from expandr_core.retrieval.exact import nearest
from expandr_core.retrieval.index import Index, tie_order
from expandr_core.retrieval.products import Proposer, integers_are_exact, summation_error
from expandr_core.retrieval.proposals import propose, sample_size

GB = 1e-9
PROPOSERS: list[Proposer] = ["float32", "bfloat16", "faiss"]
PROPOSERS += ["int8"] if integers_are_exact() else []


def index_of(vectors: np.ndarray, cuts: list[int], devices: int = 1) -> Index:
    """Cut vectors into shards at some rows, with ids in no order."""
    order = np.random.default_rng(len(vectors)).permutation(len(vectors))
    ids = pa.array([f"p{number:05}" for number in order])
    starts = [0, *cuts]
    shards = [vectors[a:b] for a, b in itertools.pairwise([*starts, len(vectors)])]
    at = ("cpu",) * devices
    return Index(ids, shards, np.array(starts), vectors.shape[1], tie_order(ids), at)


def brute_force(queries: np.ndarray, index: Index, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Score all pairs in double precision, and sort them by rounded score and id, both falling."""
    vectors = np.concatenate([np.asarray(shard) for shard in index.shards]).astype(np.float64)
    exact = [np.einsum("pd,d->p", vectors, query.astype(np.float64)) for query in queries]
    scores = np.array(exact).astype(np.float32)
    order = np.lexsort((np.broadcast_to(index.tie_order, scores.shape), -scores))[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


def check(queries: np.ndarray, index: Index, k: int, memory_gb: float = 1.0) -> None:
    expected = brute_force(queries, index, k)
    for proposer in PROPOSERS:
        scores, positions = nearest(queries, index, k, memory_gb, proposer)
        assert np.array_equal(scores, expected[0]), proposer
        assert np.array_equal(positions, expected[1]), proposer


@st.composite
def corpora(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Few distinct vectors, of very different lengths, repeated often; and where to cut the corpus."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    dimensions, count = draw(st.integers(1, 20)), draw(st.integers(1, 700))
    distinct = random.normal(size=(draw(st.integers(1, 300)), dimensions))
    distinct *= 10.0 ** random.integers(-draw(st.integers(0, 3)), 3, (len(distinct), 1))
    vectors = distinct[random.integers(0, len(distinct), count)]
    vectors = vectors.astype(draw(st.sampled_from(["float16", "float32"])))
    queries = random.normal(size=(draw(st.integers(1, 12)), dimensions)).astype(np.float32)
    cuts = draw(st.sets(st.integers(1, count - 1), max_size=3)) if count > 1 else set()
    return vectors, queries, sorted(cuts)


@settings(max_examples=60)
@given(corpora(), st.integers(1, 800), st.sampled_from([1, 3]), st.integers(1, 1000))
def test_ties_copies_lengths_blocks_and_devices_change_nothing(corpus, k, devices, at_once):
    vectors, queries, cuts = corpus
    index = index_of(vectors, cuts, devices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_FEW_PAIRS", 0)  # propose, though all could be scored
        patch.setattr(proposals, "TILE_OF_INTEGERS", (50, 5))
        check(queries, index, k, 8 * 16 * index.dimensions * at_once * GB)


@pytest.mark.parametrize("k", [1, 10, 150])
def test_more_copies_at_the_last_rank_than_proposals_are_ordered_by_id(k):
    """900 copies of one passage tie for the last rank, so that every query is searched again."""
    random = np.random.default_rng(1)
    vectors = random.normal(size=(2000, 24)).astype(np.float16)
    vectors[random.permutation(2000)[:900]] = 4
    queries = (4 + random.normal(size=(5, 24))).astype(np.float32)
    check(queries, index_of(vectors, [777]), k)


def test_vectors_of_one_dimension_are_ranked_alike():
    random = np.random.default_rng(4)
    vectors = random.normal(size=(513, 1)).astype(np.float32)
    check(random.normal(size=(200, 1)).astype(np.float32), index_of(vectors, []), 2)


def test_one_very_long_passage_does_not_hide_the_others():
    """It makes the bound of every product's error loose."""
    random = np.random.default_rng(2)
    vectors = random.normal(size=(3000, 16)).astype(np.float32)
    vectors[1234] *= 1e6
    check(random.normal(size=(20, 16)).astype(np.float32), index_of(vectors, [500, 2500]), 20)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-8, 1e8, 1e15])
def test_very_short_and_very_long_vectors_are_ranked_alike(scale):
    random = np.random.default_rng(3)
    vectors = (scale * random.normal(size=(1500, 8))).astype(np.float32)
    queries = (scale * random.normal(size=(7, 8))).astype(np.float32)
    check(queries, index_of(vectors, [400]), 30)


@pytest.mark.parametrize(("scale", "of_query"), [(1e-24, 1), (1, 1e-24), (1e-21, 1e21)])
@pytest.mark.parametrize("noise", [1e-3, 1e-7])
def test_lengths_whose_squares_single_precision_cannot_hold_hide_no_neighbour(
    scale, of_query, noise
):
    random = np.random.default_rng(6)
    vectors, queries = 1 + noise * random.normal(size=(4000, 32)), random.normal(size=(9, 32))
    queries -= queries.mean(axis=1, keepdims=True)  # so that errors are large beside the products
    index = index_of((scale * vectors).astype(np.float32), [1000])
    check((of_query * queries).astype(np.float32), index, 10)


def test_neighbours_nearer_than_half_precision_can_tell_are_ranked_exactly():
    """All passages are one vector but for the fourth digit."""
    random = np.random.default_rng(4)
    vectors = (1 + 1e-4 * random.normal(size=(4000, 64))).astype(np.float32)
    check(np.ones((3, 64), np.float32), index_of(vectors, []), 25)


def test_a_corpus_in_ascending_order_is_searched_though_every_block_is_better():
    vectors = np.linspace(-1, 1, 9000, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    check(np.ones((2, 4), np.float32), index_of(vectors, [4096]), 40, 8 * 64 * 900 * GB)


@pytest.mark.parametrize("near", ["everywhere", "in the sample", "beside the sample"])
def test_a_sample_of_a_large_corpus_misleads_nobody(near):
    """The limits that it gives can be too high, too low or about right."""
    random = np.random.default_rng(3)
    vectors = random.normal(size=(70_000, 4)).astype(np.float16)
    queries = random.normal(size=(3, 4)).astype(np.float32)
    index = index_of(vectors, [30_000])
    own = index.sample(sample_size(index, 1.0)).passage_ids
    sampled = pc.is_in(index.passage_ids, own).to_numpy(False)
    assert 1050 < sampled.sum() < 1150
    moved = {"everywhere": [], "in the sample": sampled, "beside the sample": ~sampled}
    vectors[moved[near]] += (3 * queries[0]).astype(np.float16)
    check(queries, index, 20)


def test_many_queries_are_shared_among_cores_and_ranked_alike():
    random = np.random.default_rng(6)
    vectors = random.integers(0, 2, size=(3000, 3)).astype(np.float32)
    queries = random.normal(size=(200, 3)).astype(np.float32)
    queries[150:] = 1  # more ties than proposals: searched again
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        check(queries, index_of(vectors, [1100]), 10)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_no_inner_product_is_beyond_the_bound_of_its_proposal(proposer):
    random = np.random.default_rng(5)
    vectors = (random.normal(size=(700, 96)) * random.uniform(0.1, 9, (700, 1))).astype(np.float16)
    queries = random.normal(size=(40, 96)).astype(np.float32)
    proposals = propose(queries, index_of(vectors, [300]), 700, 1.0, proposer)
    exact = queries.astype(np.float64) @ vectors.astype(np.float64).T
    exact = np.take_along_axis(exact, proposals.positions.astype(np.int64), axis=1)
    slack = np.abs(proposals.products) * proposals.rounding + proposals.errors[:, None]
    assert (np.abs(exact - proposals.products) <= slack).all()
    assert (exact <= proposals.at_most()).all()
    assert (exact[:, 9] >= proposals.at_least(10)).all()
    assert (np.diff(proposals.products) <= 0).all()
    lengths = np.linalg.norm(queries, axis=1) * np.linalg.norm(vectors.astype(float), axis=1).max()
    loosest = 2.0**-7 if proposer == "bfloat16" else 2 * summation_error(96)
    assert (proposals.errors <= loosest * lengths).all()


def test_tiny_vectors_are_ranked_alike_where_numbers_below_the_normal_ones_count_as_zero():
    random = np.random.default_rng(0)
    passages, queries = (random.normal(size=(size, 16)) * 2.0**-58 for size in (5000, 20))
    try:
        assert torch.set_flush_denormal(True)
        check(queries.astype(np.float32), index_of(passages.astype(np.float32), []), 10)
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("proposer", PROPOSERS)
def test_products_beyond_single_precision_are_refused(proposer):
    index = index_of(np.full((3, 2), 1e18, np.float32), [])
    with pytest.raises(DataError, match="products are not finite"):
        nearest(np.full((1, 2), 1e21, np.float32), index, 1, 1.0, proposer)


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("proposer", PROPOSERS)
def test_a_block_is_not_overwritten_while_it_is_searched(monkeypatch, devices, proposer):
    """Some queries take longer than it takes to read the next blocks."""
    add, seen = proposals._Pool.add, []

    def slowly(self, block, eights):
        sides = [block.vectors, *(tile.integers for tile in eights)]
        before = [side.clone() for side in sides]
        time.sleep(0.005 * bool(self._queries[0, 0] == 0))
        add(self, block, eights)
        seen.append(all(map(torch.equal, before, sides)))

    monkeypatch.setattr(proposals._Pool, "add", slowly)
    random, threads = np.random.default_rng(7), torch.get_num_threads()
    index = index_of(random.normal(size=(3000, 8)).astype(np.float16), [777], devices)
    queries = random.normal(size=(200, 8)).astype(np.float32)
    queries[0, 0] = 0  # the first share is slow
    try:
        torch.set_num_threads(3)
        propose(queries, index, 20, 8 * 16 * 8 * 100 * GB, proposer)
    finally:
        torch.set_num_threads(threads)
    assert len(seen) >= 90
    assert all(seen)
