"""Metrics: by hand, and equal to beir's own."""

import math

import numpy as np
import pyarrow as pa
import pytest
from evaluation_world import table
from hypothesis import given
from hypothesis import strategies as st

from expandr_core.evaluation.metrics import METRICS, mean_metrics, score_queries
from expandr_core.records import RUN

QRELS = ["query_id", "passage_id", "relevance"]


def run_of(scores: dict[str, dict[str, float]]) -> pa.Table:
    """Rank each query's passages by score."""
    rows = [
        (query_id, passage_id, score, rank)
        for query_id, hits in scores.items()
        for rank, (passage_id, score) in enumerate(sorted(hits.items(), key=lambda h: -h[1]), 1)
    ]
    return table(RUN.names, rows)


def test_metrics_of_two_graded_passages_by_hand():
    qrels = table(QRELS, [("q", "a", 2), ("q", "b", 1), ("q", "c", 0)])
    run = run_of({"q": {"b": 4.0, "c": 3.0, "a": 2.0, "d": 1.0}})
    [row] = score_queries(qrels, run).to_pylist()
    gained = 1 + 2 / math.log2(4)  # b at rank 1, a at rank 3
    ideal = 2 + 1 / math.log2(3)
    assert row["ndcg_at_10"] == pytest.approx(gained / ideal)
    assert row["map"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert row["recall_at_100"] == 1
    assert row["mrr_at_10"] == 1


def test_mrr_ends_at_ten_recall_at_a_hundred_and_map_with_the_run():
    passages = {f"p{place:03}": 1000.0 - place for place in range(1, 151)}
    qrels = table(QRELS, [("at 10", "p010", 1), ("at 11", "p011", 1), ("at 101", "p101", 1)])
    run = run_of({"at 10": passages, "at 11": passages, "at 101": passages})
    rows = {row["query_id"]: row for row in score_queries(qrels, run).to_pylist()}
    assert [rows[q]["mrr_at_10"] for q in ("at 10", "at 11")] == pytest.approx([0.1, 0])
    assert [rows[q]["recall_at_100"] for q in ("at 11", "at 101")] == [1, 0]
    assert rows["at 101"]["map"] == pytest.approx(1 / 101)


def test_a_query_without_positives_has_no_metric_and_one_without_hits_has_zeros():
    qrels = table(QRELS, [("none", "a", 0), ("empty", "a", 1), ("q", "a", 1)])
    scored = score_queries(qrels, run_of({"none": {"a": 1.0}, "q": {"a": 1.0}}))
    assert scored["query_id"].to_pylist() == ["empty", "q"]
    for name in METRICS:
        assert scored[name].to_pylist() == [0, 1]
    assert mean_metrics(scored) == dict.fromkeys(METRICS, 0.5)


def test_no_positives_at_all_give_an_empty_table():
    qrels = table(QRELS, [("q", "a", 0)])
    assert len(score_queries(qrels, run_of({"q": {"a": 1.0}}))) == 0


@pytest.mark.parametrize("seed", range(3))
def test_each_query_s_metrics_are_exactly_pytrec_eval_s(seed):
    import pytrec_eval

    random = np.random.default_rng(seed)
    passages = [f"p{place}" for place in range(300)]
    qrels, run = {}, {}
    for number in range(40):
        query_id = f"q{number:02}"
        judged = random.choice(passages, random.integers(2, 30), replace=False)
        qrels[query_id] = {str(p): int(random.integers(0, 4)) for p in judged}
        hits = random.choice(passages, random.integers(1, 250), replace=False)
        scores = random.permutation(len(hits)).astype(np.float32) / 7  # all different
        run[query_id] = {str(p): float(score) for p, score in zip(hits, scores, strict=True)}
    qrels["q00"] = dict.fromkeys(qrels["q00"], 0)  # no positive
    rows = [(q, p, grade) for q, grades in qrels.items() for p, grade in grades.items()]
    scored = {row.pop("query_id"): row for row in _score(rows, run)}

    first_ten = {q: dict(sorted(h.items(), key=lambda hit: -hit[1])[:10]) for q, h in run.items()}
    evaluate = pytrec_eval.RelevanceEvaluator
    measured = evaluate(qrels, {"ndcg_cut.10", "map", "recall.100"}).evaluate(run)
    reciprocal = evaluate(qrels, {"recip_rank"}).evaluate(first_ten)
    assert sorted(scored) == [q for q, grades in qrels.items() if any(grades.values())]
    for query_id, ours in scored.items():
        theirs = measured[query_id]
        assert ours == {
            "ndcg_at_10": theirs["ndcg_cut_10"],
            "map": theirs["map"],
            "recall_at_100": theirs["recall_100"],
            "mrr_at_10": reciprocal[query_id]["recip_rank"],
        }


def _score(qrels: list[tuple], run: dict[str, dict[str, float]]) -> list[dict]:
    return score_queries(table(QRELS, qrels), run_of(run)).to_pylist()


@pytest.mark.parametrize("seed", range(5))
def test_means_equal_beir_s_evaluation(seed):
    from beir.retrieval.evaluation import EvaluateRetrieval

    random = np.random.default_rng(seed)
    passages = [f"p{place}" for place in range(400)]
    qrels, run = {}, {}
    for number in range(300):  # more than are scored at once
        query_id = f"q{number}"
        relevant = random.choice(passages, random.integers(1, 20), replace=False)
        qrels[query_id] = {str(p): int(random.integers(1, 4)) for p in relevant}
        hits = random.choice(passages, random.integers(1, 200), replace=False)
        scores = random.permutation(len(hits)) / 7  # all different
        run[query_id] = {str(p): float(np.float32(s)) for p, s in zip(hits, scores, strict=True)}
    rows = [(q, p, grade) for q, grades in qrels.items() for p, grade in grades.items()]
    means = mean_metrics(score_queries(table(QRELS, rows), run_of(run)))
    ndcg, map_, recall, _ = EvaluateRetrieval.evaluate(qrels, run, [10, 100, 1000])
    mrr = EvaluateRetrieval.evaluate_custom(qrels, run, [10], "mrr")
    theirs = [ndcg["NDCG@10"], map_["MAP@1000"], recall["Recall@100"], mrr["MRR@10"]]
    assert [round(means[name], 5) for name in METRICS] == pytest.approx(theirs, abs=1e-6)


@given(st.permutations(range(12)), st.sets(st.integers(0, 11), min_size=1))
def test_metrics_lie_in_the_unit_interval_and_a_perfect_run_scores_one(order, relevant):
    qrels = table(QRELS, [("q", f"p{place}", 1) for place in relevant])
    run = run_of({"q": {f"p{place}": float(score) for score, place in enumerate(order)}})
    scored = mean_metrics(score_queries(qrels, run))
    assert all(0 <= scored[name] <= 1 for name in METRICS)
    perfect = run_of({"q": {f"p{place}": float(place in relevant) for place in order}})
    scored = mean_metrics(score_queries(qrels, perfect))
    assert scored == pytest.approx(dict.fromkeys(METRICS, 1.0))
