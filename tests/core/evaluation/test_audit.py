"""The audit: which queries are marked, and what their marks do to the gain, by hand."""

import json
from typing import Any

import pytest
from evaluation_world import columns, make, put, put_expansions, table

from expandr_core.evaluation import leakage
from expandr_core.evaluation.metrics import METRICS
from expandr_core.stages import audit
from expandr_core.store.store import Store

NINE = "one two three four five six seven eight nine"
CORPUS = [
    ("d1", "Wings", "They lift."),
    ("d2", "", NINE),
    ("d3", "", "Stones   FALL"),
    ("d4", "", ""),
    ("d5", "", "judged, and not relevant"),
]
QUERIES = [
    ("q1", "Asked in training?", "q1"),
    ("q2", "copied", "q2"),
    ("q3", "a passage of training", "q3"),
    ("q4", "clean", "q4"),
    ("q5", "no positive", "q5"),
]
QRELS = [("q1", "d1", 1), ("q2", "d2", 2), ("q3", "d3", 1), ("q4", "d4", 1), ("q4", "d5", 0)]
TRAINING = [("asked   in TRAINING?", "other"), ("other", "stones fall"), ("other", "")]
BEFORE = {"q1": 0.1, "q2": 0.2, "q3": 0.3, "q4": 0.4}
AFTER = [
    {"q1": 0.5, "q2": 0.8, "q3": 0.5, "q4": 0.4},
    {"q1": 0.7, "q2": 1.0, "q3": 0.5, "q4": 0.4},
]
WRITTEN = [
    [("q1", 0, "they lift"), ("q2", 0, "nothing"), ("q3", 0, ""), ("q4", 0, NINE), ("q5", 0, NINE)],
    [("q1", 0, "wings"), ("q2", 0, f"well {NINE}"), ("q3", 0, "x"), ("q4", 0, "y")],
]


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def evaluation(store: Store, key: str, values: dict[str, float]):
    rows = [(query_id, query_id, *[value] * 4) for query_id, value in values.items()]
    return put(store, key, {"per_query.parquet": table(["query_id", "cluster", *METRICS], rows)})


def run(store: Store, training: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the stage; return its report and its table."""
    data = put(
        store,
        "data",
        {
            "corpus.parquet": table(["passage_id", "title", "text"], CORPUS),
            "queries.parquet": table(["query_id", "query", "cluster"], QUERIES),
            "qrels.parquet": table(["query_id", "passage_id", "relevance"], QRELS),
            "training.parquet": table(["query", "positive"], TRAINING),
        },
    )
    inputs = {name: data.at(f"{name}.parquet") for name in ("corpus", "queries", "qrels")}
    inputs["before"] = evaluation(store, "before", BEFORE)
    for sample, values in enumerate(AFTER):
        inputs[f"after-{sample}"] = evaluation(store, f"after-{sample}", values)
        inputs[f"expansions-{sample}"] = put_expansions(store, f"x{sample}", [WRITTEN[sample]])
    if training:
        inputs["training-0"] = data.at("training.parquet")
    _, folder = make(store, "audit", audit.AuditOptions(), inputs)
    return json.loads((folder / "audit.json").read_text()), columns(folder / "audit.parquet")


def test_queries_are_marked_by_their_text_their_passages_and_what_is_copied(store):
    _, marked = run(store)
    assert marked == {
        "query_id": ["q1", "q2", "q3", "q4"],  # q5 has no relevant passage, so no metric
        "query_in_training": [True, False, False, False],
        "passage_in_training": [False, False, True, False],  # an empty passage tells nothing
        "copied": [
            0,
            pytest.approx(0.9),
            0,
            0,
        ],  # nine of ten words; q4's are not from its own passage
        "before": pytest.approx([0.1, 0.2, 0.3, 0.4]),
        "after": pytest.approx([0.6, 0.9, 0.5, 0.4]),
    }


def test_the_gain_is_told_with_and_without_the_marked_queries(store):
    report, _ = run(store)
    assert report["gain"] == pytest.approx((0.5 + 0.7 + 0.2 + 0) / 4)
    assert report["expansions"] == {"number": 8, "with_a_run": 1, "copying": 1}
    assert report["query_in_training"] == pytest.approx(
        {"queries": 1, "share": 0.25, "gain_of_these": 0.5, "gain_without": 0.3}
    )
    assert report["passage_in_training"]["gain_without"] == pytest.approx((0.5 + 0.7 + 0) / 3)
    assert report["copying"]["gain_without"] == pytest.approx((0.5 + 0.2 + 0) / 3)
    assert report["any"] == pytest.approx(
        {"queries": 3, "share": 0.75, "gain_of_these": 1.4 / 3, "gain_without": 0.0}
    )


def test_what_training_knows_is_null_if_the_training_data_is_not_known(store):
    report, _ = run(store, training=False)
    assert report["query_in_training"] is None and report["passage_in_training"] is None
    assert report["any"] == report["copying"]


def test_half_of_the_words_make_a_copy(store, monkeypatch):
    monkeypatch.setattr(leakage, "COPIED", 0.95)
    report, _ = run(store)
    assert report["rule"].startswith("copying: at least 0.95 of an expansion's words")
    assert report["expansions"]["copying"] == 0
    assert report["copying"]["gain_of_these"] is None
    assert report["copying"]["gain_without"] == pytest.approx(0.35)
