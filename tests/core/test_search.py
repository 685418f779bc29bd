"""Exact search: equal to brute force, whatever the blocks; ties; a query that is a passage."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expandr_core.errors import DataError
from expandr_core.search import Index, nearest, open_index, search, tie_order


def index_of(vectors: np.ndarray, ids: list[str] | None = None) -> Index:
    passage_ids = pa.array(ids or [f"p{place:03}" for place in range(len(vectors))])
    half = len(vectors) // 2
    shards = [vectors[:half].astype(np.float32), vectors[half:].astype(np.float32)]
    return Index(passage_ids, shards, tie_order(passage_ids))


def brute_force(query_id: str, query: np.ndarray, index: Index, k: int) -> list[tuple[float, str]]:
    """Sort all passages: by score, then by id, both falling."""
    scores = (np.concatenate(index.shards) @ query).tolist()
    hits = sorted(zip(scores, index.passage_ids.to_pylist(), strict=True), reverse=True)
    return [hit for hit in hits if hit[1] != query_id][:k]


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, Index, list[str]]:
    """Vectors of few small integers: their products are exact, and ties are frequent."""
    dimensions = draw(st.integers(1, 3))
    vector = st.lists(st.integers(-2, 2), min_size=dimensions, max_size=dimensions)
    queries = draw(st.lists(vector, min_size=1, max_size=30))
    passages = draw(st.lists(vector, min_size=1, max_size=40))
    ids = draw(st.permutations([f"x{place}" for place in range(len(passages))]))
    query_ids = draw(st.permutations([f"x{place}" for place in range(len(queries))]))
    return np.array(queries, dtype=np.float32), index_of(np.array(passages), ids), query_ids


@given(searches(), st.integers(1, 50), st.integers(1, 45))
def test_blocks_merge_to_what_sorting_everything_gives(data, k, block_size):
    queries, index, query_ids = data
    run = search(pa.array(query_ids), queries, index, k, block_size).to_pydict()
    found = list(zip(run["query_id"], run["rank"], run["score"], run["passage_id"], strict=True))
    expected = [
        (query_id, rank, score, passage_id)
        for query_id, query in zip(query_ids, queries, strict=True)
        for rank, (score, passage_id) in enumerate(brute_force(query_id, query, index, k), 1)
    ]
    assert found == expected


@pytest.mark.parametrize("block_size", [1, 7, 64, 1000])
def test_continuous_vectors_are_ranked_as_by_brute_force(block_size):
    random = np.random.default_rng(0)
    index = index_of(random.normal(size=(300, 16)))
    queries = random.normal(size=(25, 16)).astype(np.float32)
    scores, places = nearest(queries, index, 100, block_size)
    whole = queries.astype(np.float64) @ np.concatenate(index.shards).T.astype(np.float64)
    assert np.array_equal(places, np.argsort(-whole, axis=1)[:, :100])
    np.testing.assert_allclose(scores, -np.sort(-whole, axis=1)[:, :100], rtol=1e-4, atol=1e-5)


def test_more_passages_than_exist_are_not_invented():
    index = index_of(np.eye(3))
    run = search(pa.array(["q"]), np.array([[3, 2, 1]], dtype=np.float32), index, 1000, 2)
    assert run["passage_id"].to_pylist() == ["p000", "p001", "p002"]
    assert run["rank"].to_pylist() == [1, 2, 3]


def test_equal_scores_are_ordered_by_descending_passage_id_also_at_the_cut():
    ids = ["a", "e", "c", "d", "b", "\u00e9"]
    for block_size in (1, 2, 4, 6):
        index = index_of(np.ones((6, 2)), ids)
        run = search(pa.array(["q"]), np.ones((1, 2), dtype=np.float32), index, 3, block_size)
        assert run["passage_id"].to_pylist() == ["\u00e9", "e", "d"]


def test_our_ranks_are_those_pytrec_eval_sees_in_our_scores():
    import pytrec_eval

    ids = [f"p{place}" for place in range(30)]
    index = index_of(np.random.default_rng(1).integers(-1, 2, size=(30, 2)), ids)
    run = search(pa.array(["q"]), np.array([[1, 1]], dtype=np.float32), index, 30, 8).to_pydict()
    scores = {"q": dict(zip(run["passage_id"], run["score"], strict=True))}
    for passage_id, rank in zip(run["passage_id"], run["rank"], strict=True):
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {passage_id: 1}}, {"recip_rank"})
        assert evaluator.evaluate(scores)["q"]["recip_rank"] == pytest.approx(1 / rank)


def test_a_passage_with_the_query_s_id_is_left_out_and_replaced_by_the_next():
    index = index_of(np.array([[3], [2], [1]]), ["q", "b", "c"])
    queries = np.ones((2, 1), dtype=np.float32)
    run = search(pa.array(["q", "other"]), queries, index, 2, 10)
    assert run["query_id"].to_pylist() == ["q", "q", "other", "other"]
    assert run["passage_id"].to_pylist() == ["b", "c", "q", "b"]
    assert run["rank"].to_pylist() == [1, 2, 1, 2]


def test_vectors_that_are_not_finite_are_refused():
    index = index_of(np.array([[1.0], [np.nan], [2.0]]))
    with pytest.raises(DataError, match="not finite"):
        nearest(np.ones((1, 1), dtype=np.float32), index, 3, 10)


def test_an_index_is_read_back_from_the_files_of_its_shards(tmp_path):
    vectors = np.eye(4, dtype=np.float32)
    folders = []
    for start, stop in ((0, 3), (3, 4)):
        folders.append(tmp_path / str(start))
        folders[-1].mkdir()
        np.save(folders[-1] / "vectors.npy", vectors[start:stop])
        ids = pa.table({"passage_id": ["d", "a", "c", "b"][start:stop]})
        pq.write_table(ids, folders[-1] / "passages.parquet")
    opened = open_index(folders)
    assert opened.passage_ids.to_pylist() == ["d", "a", "c", "b"]
    assert opened.dimensions == 4
    assert opened.tie_order.tolist() == [0, 3, 1, 2]
    for size, lengths in ((1, [1, 1, 1, 1]), (2, [2, 2]), (3, [3, 1]), (10, [4])):
        blocks = list(opened.blocks(size))
        assert [len(block) for block in blocks] == lengths
        assert np.array_equal(np.concatenate(blocks), vectors)
