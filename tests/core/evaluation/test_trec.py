"""TREC run files: the lines, what trec_eval makes of them, and what they cannot hold."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluation_world import table

from expandr_core.errors import DataError
from expandr_core.evaluation.metrics import score_queries
from expandr_core.evaluation.trec import write_trec
from expandr_core.records import RUN


def save(path: Path, rows: list[tuple]) -> Path:
    pq.write_table(table(RUN.names, rows).cast(RUN), path)
    return path


def test_a_line_is_a_hit(tmp_path):
    run = save(tmp_path / "run.parquet", [("q1", "d2", 0.5, 1), ("q1", "d1", -0.25, 2)])
    assert write_trec(run, tmp_path / "run.trec", "joint-1") == 2
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert lines == ["q1 Q0 d2 1 0.5 joint-1", "q1 Q0 d1 2 -0.25 joint-1"]


def test_pytrec_eval_reads_the_same_scores_order_and_metrics(tmp_path):
    import pytrec_eval

    random = np.random.default_rng(0)
    scores = np.sort(random.random(50).astype(np.float32))[::-1]
    scores[20:25] = scores[20]  # equal: by falling id
    ids = sorted((f"p{n:02}" for n in range(50)), reverse=True)
    hits = zip(ids, scores.tolist(), range(1, 51), strict=True)
    run = save(tmp_path / "run.parquet", [("q", *hit) for hit in hits])
    write_trec(run, tmp_path / "run.trec", "tag")
    with (tmp_path / "run.trec").open() as file:
        read = pytrec_eval.parse_run(file)
    untied = {
        passage: score
        for passage, score in zip(ids, scores, strict=True)
        if score not in scores[20:25]
    }
    assert {passage: np.float32(read["q"][passage]) for passage in untied} == untied
    assert sorted(read["q"], key=lambda each: (read["q"][each], each), reverse=True) == ids
    grades = {passage: int(random.integers(0, 3)) for passage in ids}
    measured = pytrec_eval.RelevanceEvaluator({"q": grades}, {"ndcg_cut.10", "map"}).evaluate(read)
    qrels = table(["query_id", "passage_id", "relevance"], [("q", *row) for row in grades.items()])
    [ours] = score_queries(qrels, pq.read_table(run)).to_pylist()
    theirs = measured["q"]
    assert (ours["ndcg_at_10"], ours["map"]) == (theirs["ndcg_cut_10"], theirs["map"])


@pytest.mark.parametrize("score", [0.5, 0.0, -3.25, 1e-40, 1234.5])
def test_scores_fall_strictly_so_that_every_tool_finds_our_order(tmp_path, score):
    tied = [(f"p{n:04}", score, 3000 - n) for n in range(3000)][::-1]
    hits = [
        ("a", score + 1, 0),
        *tied,
        ("z", np.nextafter(np.float32(score), np.float32(-9)), 3001),
    ]
    rows = [
        (query, passage, value, rank + 1) for query in ("q", "r") for passage, value, rank in hits
    ]
    run = save(tmp_path / "run.parquet", rows)
    write_trec(run, tmp_path / "run.trec", "tag")
    lines = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert [(line[0], line[2]) for line in lines] == [row[:2] for row in rows]
    for precision in (np.float32, np.float64):
        for query in ("q", "r"):
            scores = np.array([line[4] for line in lines if line[0] == query], dtype=precision)
            assert (np.diff(scores) < 0).all()
    written = np.array([line[4] for line in lines], dtype=float)
    assert np.allclose(written, [row[2] for row in rows], rtol=1e-3, atol=1e-30)


@pytest.mark.parametrize(
    ("row", "tag", "what"),
    [
        (("q 1", "d1", 1.0, 1), "tag", "the query id 'q 1'"),
        (("q1", "d\t1", 1.0, 1), "tag", "the passage id"),
        (("q1", "", 1.0, 1), "tag", "the passage id ''"),
        (("q1", "d1", 1.0, 1), "my tag", "the tag 'my tag'"),
    ],
)
def test_white_space_in_names_is_refused_and_leaves_no_file(tmp_path, row, tag, what):
    run = save(tmp_path / "run.parquet", [row])
    with pytest.raises(DataError, match=what):
        write_trec(run, tmp_path / "run.trec", tag)
    assert [path.name for path in tmp_path.iterdir()] == ["run.parquet"]
