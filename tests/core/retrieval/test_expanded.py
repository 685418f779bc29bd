"""Search with several rankings: reciprocal rank fusion, by hand and against fractions."""

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
import retriever_world as world
from hypothesis import given
from hypothesis import strategies as st

from expandr_core.encoders.encode import Encoder
from expandr_core.options.data import IdenticalIds
from expandr_core.options.evaluation import RankingOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.retrieval.expanded import ExpandedSearch, fuse_ranks
from expandr_core.retrieval.index import index_in_memory, tie_order

PASSAGES = {"a": [9.0, 0.0], "b": [8.0, 5.0], "c": [0.0, 9.0], "d": [7.0, 1.0]}
# "east" ranks a b d c; "north" ranks c b d a; "west" ranks c d b a
WORDS = {"east": [1.0, 0.0], "north": [0.0, 1.0], "west": [-1.0, 0.0]}
Rows = list[tuple[str, str, list[str]]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Encoder:
    folder = world.save_plane(tmp_path_factory.mktemp("plane"), WORDS)
    return Encoder(folder, "cpu", EncodingOptions(similarity="dot"))


def searched(
    encoder: Encoder,
    rows: Rows,
    depth: int = 9,
    weight: float = 0.5,
    identical_ids: IdenticalIds = "ignore",
) -> dict[str, list[tuple[str, float]]]:
    index = index_in_memory(pa.array(PASSAGES), np.array(list(PASSAGES.values()), np.float32))
    fusion = FusionOptions(method="rrf", expansion_weight=weight)
    ranking = RankingOptions(depth=depth, identical_ids=identical_ids)
    block = pa.table(
        {
            "query_id": [row[0] for row in rows],
            "query": [row[1] for row in rows],
            "expansions": pa.array([row[2] for row in rows], pa.list_(pa.string())),
        }
    )
    search = ExpandedSearch(encoder, index, fusion, ranking, 1.0).search
    [(_, run)] = search([block], lambda _: None)
    found: dict[str, list[tuple[str, float]]] = {}
    for row in run.to_pylist():
        found.setdefault(row["query_id"], []).append((row["passage_id"], row["score"]))
        assert row["rank"] == len(found[row["query_id"]])
    return found


def test_the_ranks_of_query_and_expansion_are_fused_and_ties_are_trec_eval_s(encoder):
    [found] = searched(encoder, [("q", "east", ["north"])]).values()
    assert [passage_id for passage_id, _ in found] == ["b", "c", "a", "d"]
    scores = [2 / 62, 1 / 64 + 1 / 61, 1 / 61 + 1 / 64, 2 / 63]
    assert [score for _, score in found] == pytest.approx(scores, rel=1e-6)
    assert found[1][1] == found[2][1]


def test_expansions_alone_leave_the_query_s_ranking_out(encoder):
    [found] = searched(encoder, [("q", "east", ["north", "west"])], weight=1).values()
    assert [passage_id for passage_id, _ in found] == ["c", "d", "b", "a"]
    scores = [2 / 61, 1 / 62 + 1 / 63, 1 / 62 + 1 / 63, 2 / 64]
    assert [score for _, score in found] == pytest.approx(scores, rel=1e-6)


def test_weight_0_searches_with_the_query_alone(encoder):
    [found] = searched(encoder, [("q", "east", ["north"])], weight=0).values()
    assert found == [("a", 9), ("b", 8), ("d", 7), ("c", 0)]


@pytest.mark.parametrize("weight", [0.5, 1])
def test_a_query_without_expansion_is_ranked_as_alone(encoder, weight):
    rows: Rows = [("q1", "east", []), ("q2", "east", ["west"]), ("q3", "north", [])]
    found = searched(encoder, rows, weight=weight)
    assert [passage_id for passage_id, _ in found["q1"]] == ["a", "b", "d", "c"]
    assert [passage_id for passage_id, _ in found["q3"]] == ["c", "b", "d", "a"]


def test_every_ranking_is_as_deep_as_the_result(encoder):
    [found] = searched(encoder, [("q", "east", ["north"])], depth=2).values()  # a b, and c b
    assert [passage_id for passage_id, _ in found] == ["b", "c"]
    assert found[1][1] == pytest.approx(1 / 61)


def test_the_passage_with_the_query_s_id_has_no_rank(encoder):
    rows: Rows = [("b", "east", ["north"])]
    [found] = searched(encoder, rows, depth=3).values()  # a d c, and c d a
    assert [passage_id for passage_id, _ in found] == ["c", "a", "d"]
    assert found[2][1] == pytest.approx(2 / 62)
    [kept] = searched(encoder, rows, identical_ids="keep").values()
    assert kept[0][0] == "b"


@given(st.data())
def test_fused_ranks_equal_sums_of_fractions_whatever_the_order_of_the_rankings(data):
    ids = [f"p{number}" for number in range(data.draw(st.integers(1, 9)))]
    places = st.permutations(range(len(ids)))
    rankings = data.draw(st.lists(places, min_size=1, max_size=5))
    k = data.draw(st.integers(1, 10))
    sums = [
        sum(Fraction(1, 61 + ranking.index(p)) for ranking in rankings) for p in range(len(ids))
    ]
    expected = sorted(range(len(ids)), key=lambda p: (np.float32(sums[p]), ids[p]), reverse=True)
    positions = np.array([p for ranking in rankings for p in ranking])
    ranks = np.tile(np.arange(1, len(ids) + 1, dtype=np.int32), len(rankings))
    hits, scores = fuse_ranks(positions, ranks, tie_order(pa.array(ids)), k)
    assert hits.tolist() == expected[:k]
    assert scores.tolist() == pytest.approx([float(sums[p]) for p in expected[:k]])
    other = data.draw(st.permutations(rankings))
    positions = np.array([p for ranking in other for p in ranking])
    again, same = fuse_ranks(positions, ranks, tie_order(pa.array(ids)), k)
    assert again.tolist() == hits.tolist() and same.tolist() == scores.tolist()
