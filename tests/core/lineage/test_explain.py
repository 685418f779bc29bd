"""Every number of a report is explained by files, and computed again from them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import read_comparison
from expandr_core.evaluation.metrics import METRICS, score_queries
from expandr_core.lineage.cells import cells, find_cell
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.explain import check_all, explain
from expandr_core.lineage.query import explain_query
from expandr_core.lineage.remeasure import FORMULAS, measured_again, relevant_hits
from expandr_core.records import QRELS, RUN
from expandr_core.store.artifacts import Artifact


@pytest.fixture
def comparison(recorded, run):
    return read_comparison(recorded.local(run.report))


def test_every_cell_has_a_name_and_is_computed_again(recorded, run, comparison):
    compared = ComparedRun(recorded, run)
    kinds, limits = set(), {name: compared.limits(name) for name in compared.measured.datasets}
    for cell in cells(comparison, limits.__getitem__):
        if cell.value is not None:
            assert find_cell(comparison, cell.name, limits.__getitem__) == cell
            assert compared.measured.value(cell) == pytest.approx(cell.value, abs=1e-9), cell.name
            kinds.add((cell.kind, cell.limit))
    assert kinds == {
        ("mean", None),
        ("score", None),
        ("score", 0),
        ("score", 1),
        ("test", None),
        ("test", 0),
        ("test", 1),
    }


def test_the_chain_of_a_number_reaches_the_files(recorded, run):
    found = explain(recorded, run, "joint-1/ndcg@10", check=True)
    assert found["what"] == "test/round-1/ndcg@10" and found["check"]["agrees"]
    stages = [node["stage"] for node in found["nodes"]]
    assert stages[:2] == ["demo_world", "prepare"] and stages[-1] == "evaluate"
    assert {role: model["key"].rpartition("-")[0] for role, model in found["models"].items()} == {
        "retriever": "train_retriever",
        "expansions": "expand",
        "llm": "merge",
        "adapter": "dpo",
        "pairs": "pairs",
        "rewards": "reward",
        "candidates": "expand",
    }
    files = {each["file"] for each in found["sources"]}
    assert "collection/corpus.jsonl" in files
    [measured] = found["evaluations"]
    path = recorded.local(Artifact(key=measured["key"], digest="")) / "run.parquet"
    assert path.is_file() and measured["run_file"]["path"].endswith(
        f"{path.parent.name}/run.parquet"
    )
    assert found["options"]["dpo.learning_rate"] == 0.01
    assert found["commits"].keys() == {"a5fb1e5d2471"}
    assert found["cost"]["seconds"] > 1 and found["cost"]["gpu_hours"] is None
    json.dumps(found, allow_nan=False)


def test_the_example_prompt_is_given_as_text_and_ids(recorded, run):
    prompt = explain(recorded, run)["prompt"]
    assert prompt["text"].startswith("Please write a passage to answer the question.\nQuestion: ")
    assert len(prompt["ids"]) > 10 and all(isinstance(each, int) for each in prompt["ids"])


def test_the_headline_is_what_the_run_keeps(recorded, run, comparison):
    kept = comparison["kept"]["expanded"]
    assert explain(recorded, run)["what"] == f"test/{kept}/ndcg@10"


def test_what_chose_the_round_is_explained_too(recorded, run):
    found = explain(recorded, run, "dev/round-1/ndcg@10", check=True)
    assert found["check"]["agrees"] and found["title"] == "round 1: nDCG@10 on dev"
    assert found["kept"].startswith("Round 1 of 1 was best on the dev queries")
    assert found["evaluations"][0]["judgements"]["path"].endswith("/dev_qrels.parquet")
    assert explain(recorded, run, "dev/round-0..round-1/p", check=True)["check"]["agrees"]
    checked = {each["what"]: each["check"]["agrees"] for each in check_all(recorded, run)}
    assert checked["dev/round-0/ndcg@10"] and all(checked.values())


def test_a_query_alone_has_neither_language_model_nor_prompt(recorded, run):
    found = explain(recorded, run, "query/map")
    assert found["models"].keys() == {"retriever"} and found["prompt"] is None
    assert explain(recorded, run, "bm25/mrr@10")["models"] == {}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("joint-9/ndcg@10", r"no system 'joint-9'(.|\n)*round-1 \(joint round 1\)"),
        ("joint-1/ndcg@5", r"no number 'ndcg@5'(.|\n)*ndcg@10"),
        ("scifact/joint-1/ndcg@10", r"no dataset 'scifact'(.|\n)*test"),
        ("bm25/p", r"there is no"),
        ("dev/round-9/ndcg@10", r"no system 'round-9'(.|\n)*round-0"),
    ],
)
def test_a_cell_that_is_not_there_is_refused_with_those_that_are(recorded, run, what, said):
    with pytest.raises(DataError, match=said):
        explain(recorded, run, what)


def test_one_query_is_shown_with_its_texts_and_ranks(recorded, run):
    per_query = explain(recorded, run, "joint-1/map")["evaluations"][0]["per_query"]["path"]
    scores = pq.read_table(f"{recorded.root}/artifacts/{per_query}").to_pylist()
    row = max(scores, key=lambda each: each["mrr_at_10"])
    found = explain_query(recorded, run, row["query_id"])
    [joint] = [each for each in found["systems"] if each["system"] == "round-1"]
    [before] = [each for each in found["systems"] if each["system"] == "untrained"]
    assert joint["metrics"]["map"] == row["map"]
    assert joint["expansions"]["texts"] and before["expansions"]["texts"]
    assert joint["expansions"]["from"] != before["expansions"]["from"]
    ranks = [each["rank"] for each in joint["judged"] if each["relevance"] > 0 and each["rank"]]
    assert 1 / min(ranks) == pytest.approx(row["mrr_at_10"])
    assert [hit["rank"] for hit in joint["top"]] == [1, 2, 3]
    assert all(hit["passage_id"] in found["passages"] for hit in joint["top"])


def test_a_rewarded_query_is_shown_with_its_candidates(recorded, run):
    [pairs] = [step.artifact for step in run.steps if step.id.stage == "pairs"]
    pair = pq.read_table(recorded.local(pairs) / "pairs.parquet").to_pylist()[0]
    found = explain_query(recorded, run, pair["query_id"])
    [round_1] = found["rewarded"]
    sides = {each["side"]: each for each in round_1["candidates"] if each["side"]}
    for side in ("chosen", "rejected"):
        assert sides[side]["text"] == pair[f"{side}_text"]
        assert sides[side]["reward"] == pair[f"{side}_reward"]
    rewards = [each["reward"] for each in round_1["candidates"]]
    assert rewards == sorted(rewards, reverse=True) and not found["unrewarded"]


def test_a_query_without_rewards_says_so_and_how_close_its_texts_come(recorded, run):
    key = explain(recorded, run, "untrained-alone/map")["evaluations"][0]["key"]
    folder = recorded.local(Artifact(key=key, digest=""))
    scores = pq.read_table(folder / "per_query.parquet").to_pylist()
    query_id = max(scores, key=lambda each: each["map"])["query_id"]
    found = explain_query(recorded, run, query_id)
    assert not found["rewarded"] and "for the preference queries only" in found["unrewarded"]
    [alone] = [each for each in found["systems"] if each["system"] == "untrained-alone"]
    hits = pq.read_table(folder / "run.parquet", filters=[("query_id", "=", query_id)]).to_pylist()
    expected = {hit["passage_id"]: (hit["rank"], hit["score"]) for hit in hits}
    assert any(each["rank"] for each in alone["judged"])
    for each in alone["judged"]:
        found_at = expected.get(each["passage_id"], (None, None))
        assert (each["rank"], each["score"]) == found_at


def test_an_unknown_query_is_refused_with_some_that_are_there(recorded, run):
    with pytest.raises(DataError, match=r"no query 'nope'; on test there are 'test-"):
        explain_query(recorded, run, "nope")


def test_queries_are_measured_again_as_trec_eval_does_whatever_the_pieces(
    recorded, run, monkeypatch
):
    key = explain(recorded, run, "joint-1/map")["evaluations"][0]["key"]
    written = pq.read_table(f"{recorded.root}/artifacts/{key}/per_query.parquet")
    for rows in (1, 7, 100, 101, 65536):
        monkeypatch.setattr("expandr_core.lineage.remeasure._ROWS_AT_ONCE", rows)
        again = measured_again(recorded, key)
        assert again.drop_columns(METRICS) == written.drop_columns(METRICS).combine_chunks()
        for name in METRICS:
            assert again[name].to_pylist() == pytest.approx(written[name].to_pylist(), abs=1e-12)


@pytest.mark.parametrize(
    "changed",
    [
        {"score": [0.9, 0.95, 0.7]},
        {"rank": [1, 3, 2]},
        {"query_id": ["test-013-look-1", "x", "test-013-look-1"]},
    ],
)
def test_a_ranking_whose_ranks_do_not_follow_its_scores_is_refused(tmp_path, changed):
    hits = {"query_id": ["q"] * 3, "passage_id": list("abc"), "score": [0.9, 0.8, 0.7],
            "rank": [1, 2, 3]} | changed  # fmt: skip
    pq.write_table(pa.table(hits, schema=RUN), tmp_path / "run.parquet")
    qrels = pa.table([["q"], ["b"], [1]], schema=QRELS)
    with pytest.raises(DataError, match="do not follow its scores"):
        relevant_hits(pa.array(["q"]), qrels, tmp_path / "run.parquet")


def test_the_formulas_are_those_of_trec_eval(tmp_path):
    """Grades, several relevant passages, and queries without hits, at random."""
    random = np.random.default_rng(0)
    rows, judged = [], []
    for query in (f"q{number}" for number in range(60)):
        passages = random.permutation(200)[: random.integers(0, 150)]
        rows += [(query, f"p{each}", -float(rank), rank) for rank, each in enumerate(passages, 1)]
        judged += [
            (query, f"p{each}", int(random.integers(-1, 4))) for each in random.permutation(200)[:9]
        ]
    hits = pa.table(list(zip(*rows, strict=True)), schema=RUN)
    qrels = pa.table(list(zip(*judged, strict=True)), schema=QRELS)
    pq.write_table(hits, tmp_path / "run.parquet")
    expected = score_queries(qrels, hits)
    positive = qrels.filter(pc.field("relevance") > 0)
    relevant = relevant_hits(
        expected["query_id"].combine_chunks(), positive, tmp_path / "run.parquet"
    )
    for formula, ranks, name in zip(FORMULAS.values(), (10, 0, 100, 10), METRICS, strict=True):
        found = formula(relevant, ranks)
        assert found == pytest.approx(expected[name].to_numpy(), abs=1e-12), name
