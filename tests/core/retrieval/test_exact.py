"""Exact search: equal to brute force, whatever the blocks; ties; a query that is a passage."""

import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expandr_core.errors import DataError
from expandr_core.retrieval.exact import nearest, search
from expandr_core.retrieval.index import Index, open_index

GB = 1e-9  # so a limit in bytes is bytes * GB
WIDE = 1.0


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def write_shards(
    folder: Path, vectors: np.ndarray, ids: list[str], cuts: list[int], vector_type: str = "float16"
) -> Index:
    """Write an index as the stage `encode` does, cut into shards at some rows; open it."""
    folders = []
    for start, stop in itertools.pairwise([0, *cuts, len(vectors)]):
        folders.append(folder / f"shard-{len(folders)}")
        folders[-1].mkdir(parents=True, exist_ok=True)
        np.save(folders[-1] / "vectors.npy", vectors[start:stop].astype(vector_type))
        rows = pa.table({"passage_id": pa.array(ids[start:stop], pa.string())})
        pq.write_table(rows, folders[-1] / "passages.parquet")
    return open_index(folders)


def index_of(
    folder: Path, vectors: np.ndarray, ids: list[str] | None = None, vector_type: str = "float16"
) -> Index:
    ids = ids or [f"p{place:03}" for place in range(len(vectors))]
    return write_shards(folder, vectors, ids, [len(vectors) // 2], vector_type)


def limit(index: Index, passages: int) -> float:
    """The memory in GB whose half is taken by so many vectors."""
    return 2 * passages * 4 * index.dimensions * GB


def brute_force(
    query_id: str, query: np.ndarray, vectors: np.ndarray, ids: list[str], k: int
) -> list[tuple[float, str]]:
    """Sort all passages: by score, then by id, both falling."""
    scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32).tolist()
    hits = sorted(zip(scores, ids, strict=True), reverse=True)
    return [hit for hit in hits if hit[1] != query_id][:k]


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Vectors of few small integers: their products are exact, and ties are frequent."""
    dimensions = draw(st.integers(1, 3))
    vector = st.lists(st.integers(-2, 2), min_size=dimensions, max_size=dimensions)
    queries = draw(st.lists(vector, min_size=1, max_size=30))
    passages = draw(st.lists(vector, min_size=1, max_size=120))
    ids = draw(st.permutations([f"x{place}" for place in range(len(passages))]))
    query_ids = draw(st.permutations([f"x{place}" for place in range(len(queries))]))
    return np.array(queries, dtype=np.float32), np.array(passages), ids, query_ids


@given(searches(), st.integers(1, 50), st.integers(1, 130))
def test_blocks_merge_to_what_sorting_everything_gives(folder, data, k, block_size):
    queries, passages, ids, query_ids = data
    index = index_of(folder, passages, ids)
    run = search(pa.array(query_ids), queries, index, k, limit(index, block_size)).to_pydict()
    found = list(zip(run["query_id"], run["rank"], run["score"], run["passage_id"], strict=True))
    expected = [
        (query_id, rank, score, passage_id)
        for query_id, query in zip(query_ids, queries, strict=True)
        for rank, (score, passage_id) in enumerate(
            brute_force(query_id, query, passages, ids, k), 1
        )
    ]
    assert found == expected


@pytest.mark.parametrize("vector_type", ["float16", "float32"])
@pytest.mark.parametrize("block_size", [7, 64, 1000])
def test_continuous_vectors_are_ranked_as_by_brute_force(tmp_path, block_size, vector_type):
    random = np.random.default_rng(0)
    passages = random.normal(size=(300, 16)).astype(vector_type)
    queries = random.normal(size=(25, 16)).astype(np.float32)
    index = index_of(tmp_path, passages, vector_type=vector_type)
    scores, places = nearest(queries, index, 100, limit(index, block_size))
    whole = queries.astype(np.float64) @ passages.T.astype(np.float64)
    assert np.array_equal(places, np.argsort(-whole, axis=1)[:, :100])
    assert np.array_equal(scores, -np.sort(-whole, axis=1)[:, :100].astype(np.float32))


@pytest.mark.parametrize("queries", [1, 300])
@pytest.mark.parametrize("block_size", [100, 333, 100_000])
def test_equal_vectors_have_equal_scores_wherever_they_are(tmp_path, queries, block_size):
    """Of 768 dimensions; in a matrix product, how such a sum is rounded depends on the row."""
    random = np.random.default_rng(2)
    distinct = random.normal(size=(5, 768)).astype(np.float16)
    kinds = random.integers(0, 5, 1000)
    ids = [f"p{place:04}" for place in random.permutation(1000)]
    index = index_of(tmp_path, distinct[kinds], ids)
    asked = random.normal(size=(queries, 768)).astype(np.float32)
    scores, places = nearest(asked, index, 300, limit(index, block_size))
    for row in range(queries):
        expected = brute_force("", asked[row], distinct[kinds], ids, 300)
        assert [ids[place] for place in places[row]] == [id_ for _, id_ in expected]
        assert len(set(scores[row].tolist())) == len({score for score, _ in expected})


def test_more_passages_than_exist_are_not_invented(tmp_path):
    index = index_of(tmp_path, np.eye(3))
    run = search(pa.array(["q"]), np.array([[3, 2, 1]], dtype=np.float32), index, 1000, WIDE)
    assert run["passage_id"].to_pylist() == ["p000", "p001", "p002"]
    assert run["rank"].to_pylist() == [1, 2, 3]


def test_equal_scores_are_ordered_by_descending_passage_id_also_at_the_cut(tmp_path):
    ids = ["a", "e", "c", "d", "b", "\u00e9"]
    index = index_of(tmp_path, np.ones((6, 2)), ids)
    for block_size in (1, 2, 4, 6):
        query = np.ones((1, 2), dtype=np.float32)
        run = search(pa.array(["q"]), query, index, 3, limit(index, block_size))
        assert run["passage_id"].to_pylist() == ["\u00e9", "e", "d"]


def test_our_ranks_are_those_pytrec_eval_sees_in_our_scores(tmp_path):
    import pytrec_eval

    ids = [f"p{place}" for place in range(30)]
    index = index_of(tmp_path, np.random.default_rng(1).integers(-1, 2, size=(30, 2)), ids)
    query = np.array([[1, 1]], dtype=np.float32)
    run = search(pa.array(["q"]), query, index, 30, limit(index, 8)).to_pydict()
    scores = {"q": dict(zip(run["passage_id"], run["score"], strict=True))}
    for passage_id, rank in zip(run["passage_id"], run["rank"], strict=True):
        evaluator = pytrec_eval.RelevanceEvaluator({"q": {passage_id: 1}}, {"recip_rank"})
        assert evaluator.evaluate(scores)["q"]["recip_rank"] == pytest.approx(1 / rank)


def test_a_passage_with_the_query_s_id_is_left_out_and_replaced_by_the_next(tmp_path):
    index = index_of(tmp_path, np.array([[3], [2], [1]]), ["q", "b", "c"])
    queries = np.ones((2, 1), dtype=np.float32)
    run = search(pa.array(["q", "other"]), queries, index, 2, WIDE)
    assert run["query_id"].to_pylist() == ["q", "q", "other", "other"]
    assert run["passage_id"].to_pylist() == ["b", "c", "q", "b"]
    assert run["rank"].to_pylist() == [1, 2, 1, 2]
    kept = search(pa.array(["q"]), queries[:1], index, 2, WIDE, "keep")
    assert kept["passage_id"].to_pylist() == ["q", "b"]


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(tmp_path, damage):
    index = index_of(tmp_path, np.array([[1.0], [damage], [2.0]]))
    with pytest.raises(DataError, match="not finite"):
        nearest(np.ones((1, 1), dtype=np.float32), index, 1, WIDE)
    index = index_of(tmp_path, np.ones((3, 1)))
    with pytest.raises(DataError, match="not finite"):
        nearest(np.array([[damage]], dtype=np.float32), index, 1, WIDE)


def test_an_index_is_read_back_from_the_files_of_its_shards(tmp_path):
    vectors = np.eye(4)
    opened = write_shards(tmp_path, vectors, ["d", "a", "c", "b"], [3])
    assert opened.passage_ids.to_pylist() == ["d", "a", "c", "b"]
    assert opened.dimensions == 4
    assert opened.tie_order.tolist() == [0, 3, 1, 2]
    for size, lengths in ((1, [1, 1, 1, 1]), (2, [2, 2]), (3, [3, 1]), (10, [4])):
        blocks = [block.vectors.numpy().copy() for block in opened.blocks(size, ["cpu"])]
        assert [len(block) for block in blocks] == lengths
        assert np.array_equal(np.concatenate(blocks), vectors)


def peak_of_searching(folder: Path, memory_gb: float) -> tuple[int, list[list[int]]]:
    """Search the shards below a folder in a process of its own.

    Returns:
        By how many bytes its memory grew at most, and the places found.
    """
    program = """
import json, re, sys
from pathlib import Path
import numpy as np
from expandr_core.retrieval.exact import nearest
from expandr_core.retrieval.index import open_index

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

index = open_index(sorted(Path(sys.argv[1]).iterdir()))
queries = np.load(Path(sys.argv[1]).parent / "queries.npy")
nearest(queries, index._replace(shards=index.shards[:1], passage_ids=index.passage_ids[:1000]), 9, 1)
Path("/proc/self/clear_refs").write_text("5")  # the peak so far no longer counts
before = status("VmRSS")
places = nearest(queries, index, 9, float(sys.argv[2]))[1]
print(json.dumps([status("VmHWM") - before, places.tolist()]))
"""
    command = [sys.executable, "-c", program, str(folder), str(memory_gb)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, places = json.loads(done.stdout)
    return peak, places


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_corpus_ten_times_larger_than_the_limit_is_searched_within_it(tmp_path):
    passages, dimensions, size = 160_000, 256, 8192
    random = np.random.default_rng(3)
    table = random.normal(size=(997, dimensions)).astype(np.float32)
    scales = random.uniform(0.5, 1.5, passages).astype(np.float32)
    queries = random.normal(size=(25, dimensions)).astype(np.float32)
    np.save(tmp_path / "queries.npy", queries)
    scores = []
    for start in range(0, passages, size):
        folder = tmp_path / "shards" / f"{start:07}"
        folder.mkdir(parents=True)
        rows = np.arange(start, min(start + size, passages))
        vectors = (table[rows % 997] * scales[rows, None]).astype(np.float16)
        np.save(folder / "vectors.npy", vectors)
        ids = pa.table({"passage_id": [f"p{row:06}" for row in rows]})
        pq.write_table(ids, folder / "passages.parquet")
        scores.append(queries.astype(np.float64) @ vectors.T.astype(np.float64))
    whole = np.concatenate(scores, axis=1)
    stored = passages * dimensions * 2
    peak, places = peak_of_searching(tmp_path / "shards", stored / 10 * GB)
    assert peak < 1.5 * stored / 10
    latest_first = -np.arange(passages)  # float16 makes some vectors equal
    expected = [np.lexsort((latest_first, -row.astype(np.float32)))[:9].tolist() for row in whole]
    assert places == expected


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_stays_within_bounds_if_all_passages_are_equally_near(tmp_path):
    passages, queries = 20_000, np.zeros((2000, 32), np.float32)
    np.save(tmp_path / "queries.npy", queries)
    (tmp_path / "shards" / "0").mkdir(parents=True)
    vectors = np.random.default_rng(3).normal(size=(passages, 32)).astype(np.float32)
    np.save(tmp_path / "shards" / "0" / "vectors.npy", vectors)
    ids = pa.table({"passage_id": [f"p{row:05}" for row in range(passages)]})
    pq.write_table(ids, tmp_path / "shards" / "0" / "passages.parquet")
    peak, places = peak_of_searching(tmp_path / "shards", 0.05)
    assert peak < 500e6
    assert places == [list(range(passages - 1, passages - 10, -1))] * len(queries)
