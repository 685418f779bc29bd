"""The gate as a server uses it, its features, and runs that are put together."""

import json
import subprocess
import sys
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from expandr_core.errors import DataError
from expandr_core.options.gate import GateOptions
from expandr_core.records import RUN
from expandr_core.retrieval.gate import (
    AFTER,
    BEFORE,
    Gate,
    after_features,
    before_features,
    read_gate,
)
from expandr_core.retrieval.run_fusion import chosen, fused

LEARNED = Gate(
    mode="after",
    weight=0.3,
    alpha=0.3,
    policy="learned",
    features=AFTER,
    means=(4.0, 0.5, 0.1, 0.5, 1.0, 0.5),
    scales=(2.0, 0.1, 0.1, 0.2, 1.0, 0.5),
    coefficients=(0.5, -1.0, 0.25, 2.0, 0.0, -0.125),
    intercept=0.1,
    threshold=0.2,
)


def test_a_gate_that_is_read_decides_as_the_one_that_was_written(tmp_path):
    LEARNED.write(tmp_path)
    assert read_gate(tmp_path) == LEARNED
    assert json.loads((tmp_path / "gate.json").read_text())["schema"] == 1
    features = np.array([[6.0, 0.4, 0.3, 0.7, 1.0, 0.0], [4.0, 0.6, 0.1, 0.5, 1.0, 0.5]])
    by_hand = [0.5 + 1.0 + 0.5 + 2.0 + 0.125 + 0.1, -1.0 + 0.1]
    assert LEARNED.scores(features) == pytest.approx(by_hand)
    assert LEARNED.expands(features).tolist() == [True, False]


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', '{"schema": 1, "mode": "before"}'])
def test_what_is_no_gate_is_refused_by_name(tmp_path, text):
    (tmp_path / "gate.json").write_text(text)
    with pytest.raises(DataError, match=r"gate\.json.*learn"):
        read_gate(tmp_path)


def test_a_policy_that_is_not_learned_needs_no_features():
    for policy, decided in (("always", True), ("never", False)):
        gate = Gate("before", 0.5, 0.5, policy)
        assert gate.expands(np.zeros((3, 0))).tolist() == [decided] * 3
        assert gate.needs_text == decided
    assert LEARNED.needs_text and not Gate("before", 0.5, 0.5, "learned").needs_text


def test_a_server_can_decide_with_numpy_alone():
    program = "import sys, expandr_core.retrieval.gate; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert "numpy" in loaded
    assert not loaded & {"torch", "sklearn", "scipy", "pyarrow", "pydantic", "prefect", "pandas"}


@pytest.mark.parametrize("passages", range(11))
def test_features_are_finite_and_right_for_a_corpus_of_any_size(passages):
    scores = [0.9 - 0.1 * n for n in range(passages)]
    before = before_features(3, scores)
    gap = scores[0] - scores[min(passages, 10) - 1] if passages else 0
    assert before == pytest.approx([3, scores[0] if passages else 0, gap])
    ids = [f"p{n}" for n in range(passages)]
    vectors = np.array([[3.0, 4.0], [0.0, 0.0]])
    found = after_features(before, vectors[1], vectors, ids, ids[::-1])
    assert np.isfinite(found).all() and len(found) == len(AFTER)
    assert found[5] == (1 if 0 < passages <= 10 else 0 if not passages else 0.9)


def test_several_expansions_are_described_by_their_mean_and_their_pairs():
    random = np.random.default_rng(0)
    query, texts = random.normal(size=5), random.normal(size=(4, 5)) * [[1], [2], [3], [4]]
    units = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    mean = units.mean(axis=0)
    cosine = query @ mean / np.linalg.norm(query) / np.linalg.norm(mean)
    pairs = np.mean([a @ b for a, b in combinations(units, 2)])
    found = after_features(np.zeros(3), query, texts, list("abcd"), list("cdef"))
    assert found[3:] == pytest.approx([cosine, pairs, 0.5])
    assert after_features(np.zeros(3), query, texts[:1], [], [])[4] == 1
    assert after_features(np.zeros(3), query, texts[:0], list("ab"), list("ab")).tolist() == [
        *(0, 0, 0),
        *(0, 1, 1),
    ]


def run_of(rows: dict[str, list[str]]) -> pa.Table:
    columns = [
        (query_id, passage_id, 1 / rank, rank)
        for query_id, ids in rows.items()
        for rank, passage_id in enumerate(ids, 1)
    ]
    return pa.table([list(column) for column in zip(*columns, strict=True)], schema=RUN)


def ids_of(run: pa.Table) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in run.to_pylist():
        found.setdefault(row["query_id"], []).append(row["passage_id"])
        assert row["rank"] == len(found[row["query_id"]])
    return found


def test_ranks_are_fused_as_by_brute_force_with_ties_by_descending_id():
    random = np.random.default_rng(1)
    pool = [f"p{n}" for n in range(12)]
    queries = [f"q{n}" for n in range(9)]
    rows = [
        {q: random.permutation(pool)[: random.integers(1, 8)].tolist() for q in queries}
        for _ in range(2)
    ]
    rows[0]["tied"], rows[1]["tied"] = ["p1", "p2"], ["p2", "p1"]
    rows[1].pop("q3")  # finds nothing
    fused_runs = fused([*queries, "tied", "none"], *map(run_of, rows), depth=6)
    found = ids_of(fused_runs)
    for query_id in [*queries, "tied"]:
        scores: dict[str, float] = {}
        for run in rows:
            for rank, passage_id in enumerate(run.get(query_id, []), 1):
                scores[passage_id] = scores.get(passage_id, 0) + 1 / (60 + rank)
        best = sorted(scores, key=lambda p: (np.float32(scores[p]), p), reverse=True)[:6]
        assert found[query_id] == best
    assert found["tied"] == ["p2", "p1"]
    assert "none" not in found
    assert fused_runs.schema == RUN


def test_each_querys_hits_come_from_the_run_that_is_chosen():
    alone, expanded = run_of({"a": ["1", "2"], "b": ["3"]}), run_of({"b": ["4"], "a": ["5"]})
    taken = chosen(["b", "a", "c"], alone, expanded, np.array([True, False, True]))
    assert ids_of(taken) == {"b": ["4"], "a": ["1", "2"]}
    assert list(ids_of(taken)) == ["b", "a"]


def test_yaml_can_turn_the_gate_off():
    assert GateOptions.model_validate({"mode": False}).mode == "off"
    assert set(BEFORE) < set(AFTER)
