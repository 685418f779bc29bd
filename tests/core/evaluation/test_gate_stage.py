"""The stages gate and evaluate_runs, against evaluations and by brute force."""

import json

import numpy as np
import pytest
from evaluation_world import columns, make, put, put_expansions
from test_evaluate import ENCODING, QUERY_IDS, World, expansions, shards_of

from expandr_core.data.terms import terms
from expandr_core.errors import DataError
from expandr_core.options.evaluation import RankingOptions, SignificanceOptions
from expandr_core.options.gate import GateOptions
from expandr_core.options.retriever import FusionOptions, IndexOptions
from expandr_core.retrieval.gate import AFTER, BEFORE, Gate, read_gate
from expandr_core.stages.evaluate_runs import EvaluateRunsOptions
from expandr_core.stages.gate import GateStageOptions
from expandr_core.store.artifacts import Artifact


class Measured(World):
    """The world with two expansions a query, of one query none, and two evaluations."""

    def __init__(self, folder):
        super().__init__(folder)
        rows = [(q, n, "" if q == "q03" else text) for q, n, text in expansions(2)]
        self.texts = put_expansions(self.store, "expand-1", shards_of(rows, 2))
        self.alone = self.evaluate(0.0)
        self.expanded = self.evaluate(0.5, expansions=self.texts)

    def learn(self, method="vector", gate: GateOptions | None = None, **more):
        options = GateStageOptions(
            encoding=ENCODING,
            fusion=FusionOptions(method=method),
            index=IndexOptions(vector_type="float32"),
            ranking=RankingOptions(depth=10),
            gate=gate or GateOptions(),
            significance=SignificanceOptions(),
        )
        inputs = self.inputs(retriever=self.retriever, embeddings=self.embeddings)
        made, path = make(self.store, "gate", options, inputs | {"expansions": self.texts} | more)
        return made, path

    def together(self, how, gate: Gate | None = None, name="", **more):
        inputs = self.inputs(alone=self.alone[0], expanded=self.expanded[0], **more)
        if gate:
            gate.write(self.store.scratch)
            text = (self.store.scratch / "gate.json").read_text()
            inputs["gate"] = put(self.store, f"gate-{name}", {}, texts={"gate.json": text})
        options = EvaluateRunsOptions(how=how, encoding=ENCODING, depth=10)
        return make(self.store, "evaluate_runs", options, inputs)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Measured:
    return Measured(tmp_path_factory.mktemp("gate"))


def test_every_weight_is_measured_as_an_evaluation_does(world):
    artifact, folder = world.learn()
    gate = read_gate(folder)
    measured = gate.dev["by_weight"]
    assert list(measured) == [f"{tenth / 10:g}" for tenth in range(11)]
    for weight in (0.0, 0.3, 1.0):
        more = {"expansions": world.texts} if weight else {}
        _, evaluated = world.evaluate(weight, **more)
        metrics = json.loads((evaluated / "metrics.json").read_text())
        assert measured[f"{weight:g}"] == pytest.approx(metrics["ndcg_at_10"])
    best = max(measured.values())
    assert gate.alpha == min(float(w) for w, ndcg in measured.items() if ndcg > best - 1e-12)
    assert artifact.counts["queries"] == 16  # q05 has no relevant passage
    assert gate.dev["tests"].keys() == {"against 0", "against 0.5"}
    assert gate.dev["tests"]["against 0"]["clusters"] == 3


@pytest.mark.parametrize("method", ["hyde", "concatenate", "rrf"])
def test_other_methods_choose_between_none_the_usual_and_the_expansions_alone(world, method):
    _, folder = world.learn(method)
    assert list(read_gate(folder).dev["by_weight"]) == ["0", "0.5", "1"]


def test_the_rows_say_what_the_gate_was_learned_from(world):
    _, folder = world.learn(gate=GateOptions(mode="after"))
    rows = columns(folder / "queries.parquet")
    assert list(rows)[4:-2] == list(AFTER)
    scored = columns(world.alone[1] / "per_query.parquet")
    assert rows["query_id"] == scored["query_id"]
    assert rows["cluster"] == scored["cluster"]
    assert rows["ndcg_alone"] == pytest.approx(scored["ndcg_at_10"])
    run = columns(world.alone[1] / "run.parquet")
    for row, query_id in enumerate(rows["query_id"]):
        pairs = zip(run["query_id"], run["score"], strict=True)
        scores = [score for q, score in pairs if q == query_id]
        found = [rows[name][row] for name in BEFORE]
        words = len(terms(world.queries[query_id]))
        assert found == pytest.approx([words, scores[0], scores[0] - scores[9]], abs=1e-6)
    at = rows["query_id"].index("q03")
    assert [rows[name][at] for name in AFTER[3:]] == [0, 1, 1]
    assert rows["ndcg_alone"][at] == rows["ndcg_expanded"][at]


def scores_of(folder) -> dict[str, float]:
    rows = columns(folder / "per_query.parquet")
    return dict(zip(rows["query_id"], rows["ndcg_at_10"], strict=True))


def by_feature(mode: str, number: int, threshold: float) -> Gate:
    """A gate that looks at one feature."""
    names = AFTER if mode == "after" else BEFORE
    own = tuple(float(n == number) for n in range(len(names)))
    zeros, ones = (0.0,) * len(names), (1.0,) * len(names)
    return Gate(mode, 0.5, 0.5, "learned", names, zeros, ones, own, 0.0, threshold)


def test_a_gate_before_generation_takes_each_querys_run_and_counts_the_calls_saved(world):
    words = {query_id: len(terms(text)) for query_id, text in world.queries.items()}
    artifact, folder = world.together("gate", by_feature("before", 0, 3), "before")
    decided = columns(folder / "gate.parquet")
    expands = dict(zip(decided["query_id"], decided["expanded"], strict=True))
    assert expands == {query_id: words[query_id] >= 3 for query_id in QUERY_IDS}
    assert 0 < sum(expands.values()) < len(QUERY_IDS)
    alone, expanded, gated = map(scores_of, (world.alone[1], world.expanded[1], folder))
    assert gated == {q: expanded[q] if expands[q] else alone[q] for q in gated}
    assert len(gated) == len(QUERY_IDS) - 1  # q05 has no relevant passage
    assert artifact.counts["searched"] == len(gated)
    assert artifact.counts["expanded"] == sum(expands[q] for q in gated)
    assert artifact.counts["llm_calls_saved"] == len(gated) - sum(expands[q] for q in gated)
    assert artifact.counts["ndcg_at_10"] == pytest.approx(np.mean(list(gated.values())))


def test_a_gate_after_generation_reads_the_expansions_and_saves_no_call(world):
    more: dict[str, Artifact] = {"retriever": world.retriever, "expansions": world.texts}
    gate = by_feature("after", 3, 0.5)  # the cosine of query and expansions
    artifact, folder = world.together("gate", gate, "after", **more)
    decided = columns(folder / "gate.parquet")
    for query_id, expands in zip(decided["query_id"], decided["expanded"], strict=True):
        texts = [text for q, _, text in expansions(2) if q == query_id and q != "q03"]
        if not texts:
            assert not expands
            continue
        query = world.encoder.encode_queries([world.queries[query_id]])[0]
        mean = world.encoder.encode_passages(texts)
        mean = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).mean(axis=0)
        cosine = query @ mean / np.linalg.norm(query) / np.linalg.norm(mean)
        assert expands == (cosine >= 0.5)
    assert 0 < artifact.counts["expanded"] < len(QUERY_IDS)
    assert artifact.counts["llm_calls_saved"] == 0


@pytest.mark.parametrize(("policy", "saved"), [("always", 0), ("never", 16)])
def test_a_constant_policy_is_one_of_the_two_runs(world, policy, saved):
    gate = Gate("after", 0.5, 0.0, policy)
    artifact, folder = world.together("gate", gate, policy)
    same = world.expanded[1] if policy == "always" else world.alone[1]
    assert scores_of(folder) == scores_of(same)
    assert artifact.counts["llm_calls_saved"] == saved


def test_fused_ranks_are_measured(world):
    _, folder = world.together("rrf")
    rows, runs = columns(folder / "run.parquet"), []
    for _, path in (world.alone, world.expanded):
        run = columns(path / "run.parquet")
        runs.append(list(zip(run["query_id"], run["passage_id"], run["rank"], strict=True)))
    for query_id in QUERY_IDS:
        scores: dict[str, float] = {}
        for run in runs:
            for q, passage_id, rank in run:
                if q == query_id:
                    scores[passage_id] = scores.get(passage_id, 0) + 1 / (60 + rank)
        best = sorted(scores, key=lambda p: (np.float32(scores[p]), p), reverse=True)[:10]
        pairs = zip(rows["query_id"], rows["passage_id"], strict=True)
        assert [p for q, p in pairs if q == query_id] == best


def test_a_gate_is_needed_to_gate_and_of_no_use_else(world):
    with pytest.raises(DataError, match="do not go together"):
        world.together("gate")
