"""The report's numbers are those of the run's files."""

import copy

import numpy as np
import pyarrow.parquet as pq
import pytest

from expandr_core.evaluation.comparison import read_comparison
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.intervals import bootstrap
from expandr_core.reports.graph import graph_of, mermaid
from expandr_core.reports.pages import pages_of
from expandr_core.reports.queries import changes_of
from expandr_core.reports.systems import headline_of
from expandr_core.store.artifacts import Artifact


def test_an_interval_of_independent_observations_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(size=(400, 1))
    [low], [high] = bootstrap(values, np.arange(400), seed=1)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_repeating_each_query_in_its_cluster_makes_nothing_more_certain():
    values = np.random.default_rng(0).normal(size=(40, 1))
    alone = bootstrap(values, np.arange(40), seed=1)
    repeated = bootstrap(np.repeat(values, 9, axis=0), np.repeat(np.arange(40), 9), seed=1)
    assert repeated == pytest.approx(alone)


def test_the_headline_is_no_system_that_changes_no_query():
    names = {"query": 0.43, "gated": 0.43, "expanded": 0.38}
    comparison = {
        "metric": "ndcg_at_10",
        "kept": None,
        "datasets": [{"name": "d"}],
        "systems": [{"name": name, "baseline": "query"} for name in names],
        "results": [{"dataset": "d", "system": k, "ndcg_at_10": v} for k, v in names.items()],
    }
    tests = [
        {"dataset": "d", "before": "query", "after": name, "wins": won, "losses": lost}
        for name, won, lost in (("gated", 0, 0), ("expanded", 30, 70))
    ]
    headline = headline_of(comparison, tests)
    assert headline and headline["after"] == "expanded"
    assert headline_of(comparison, tests[:1]) == tests[0]


def test_every_section_of_a_run_by_an_earlier_version_is_there(report):
    assert not [
        name for name, part in report.items() if isinstance(part, dict) and "unavailable" in part
    ]
    assert report["headline"]["after"] == "round-1" and len(report["datasets"]) == 1
    assert [curve["kind"] for curve in report["curves"]] == ["retriever", "LLM", "retriever"]
    assert {curve["examples_are"] for curve in report["curves"]} == {"examples", "pairs"}
    assert all(curve["examples"] > 0 and curve["steps"] > 0 for curve in report["curves"])
    assert {each["part"] for each in report["split"]} == {
        *("preference data", "training the retriever", "choosing the round (dev)")
    }
    assert len(report["pair_audits"]) == 1 and report["options"]["changed"]


def test_the_table_has_the_comparisons_numbers_within_their_intervals(report, recorded, run):
    comparison = read_comparison(recorded.local(run.report))
    assert len(report["systems"]) == len(comparison["results"])
    for row, result in zip(report["systems"], comparison["results"], strict=True):
        assert row.items() >= result.items()
        assert row["low"] - 1e-9 <= row["ndcg_at_10"] <= row["high"] + 1e-9
        assert row["clusters"] == 3


def test_the_similarity_is_the_score_of_the_best_relevant_passage(report, recorded, run):
    similarity = report["similarity"]
    inputs = recorded.manifest(run.report.key)["inputs"]
    for row in similarity["systems"]:
        key = inputs[f"measured/test/{row['system']}/0"]["key"]
        hits = pq.read_table(recorded.local(Artifact(key=key, digest="", path="run.parquet")))
        qrels = recorded.local(Artifact(**recorded.manifest(key)["inputs"]["qrels"]))
        positives = {
            (row["query_id"], row["passage_id"])
            for row in pq.read_table(qrels).to_pylist()
            if row["relevance"] > 0
        }
        best: dict[str, float] = {}
        for hit in hits.to_pylist():
            if (hit["query_id"], hit["passage_id"]) in positives:
                best[hit["query_id"]] = max(best.get(hit["query_id"], -1), hit["score"])
        row["best"] = best
    common = set.intersection(*(set(row["best"]) for row in similarity["systems"]))
    assert len(common) == similarity["queries"]
    for row in similarity["systems"]:
        assert row["mean"] == pytest.approx(np.mean([row["best"][each] for each in common]))


def test_the_queries_at_the_ends_are_those_that_changed_most(report, recorded, run):
    rows = pq.read_table(recorded.local(run.report) / "differences.parquet").to_pylist()
    own = [row for row in rows if (row["before"], row["after"]) == ("query", "round-1")]
    queries = report["queries"]
    assert queries["wins"] == sum(row["difference"] > 0 for row in own)
    assert queries["losses"] == sum(row["difference"] < 0 for row in own) == len(queries["worst"])
    best = queries["best"][0]
    assert best["difference"] == max(row["difference"] for row in own)
    assert best["expansions_before"] and best["expansions_after"]
    assert [hit["rank"] for hit in best["top_after"]] == [1, 2, 3]
    at_first = best["rank_after"] == 1
    assert any(hit["relevant"] for hit in best["top_after"][:1]) == at_first


def test_an_expansion_is_not_shown_as_before_an_alignment_that_did_not_happen(recorded, run):
    compared = ComparedRun(recorded, run)
    titles = {"before_title": "query only", "after_title": "+ untrained expansion"}
    pair = {"dataset": "test", "before": "query", "after": "untrained"}
    changes = changes_of(compared, pair | titles)
    for row in changes["best"] + changes["worst"]:
        assert row["expansions_after"] and not row["expansions_before"]


@pytest.mark.parametrize("most", [40, 14])
def test_the_lineage_reaches_from_the_data_to_the_comparison(recorded, run, monkeypatch, most):
    monkeypatch.setattr("expandr_core.reports.graph.MOST_NODES", most)
    graph = graph_of(ComparedRun(recorded, run))
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert 8 <= len(nodes) <= most
    assert sum(node["artifacts"] for node in nodes.values()) == graph["artifacts"]
    for (one, other), bends in zip(graph["edges"], graph["bends"], strict=True):
        layers = [nodes[one]["layer"], *(layer for layer, _ in bends), nodes[other]["layer"]]
        assert layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1
    assert len(mermaid(graph).splitlines()) == 1 + len(nodes) + len(graph["edges"])
    first, last = min(nodes.values(), key=at_layer), max(nodes.values(), key=at_layer)
    assert (first["stage"], last["stage"]) == ("demo_world", "compare")


def at_layer(node: dict) -> int:
    return node["layer"]


def test_every_step_is_paid_for_once(report, run):
    keys = {step.artifact.key for step in run.steps}
    assert sum(stage["artifacts"] for stage in report["cost"]["stages"]) == len(keys)
    assert report["cost"]["total"]["made"] == len(keys)


def test_what_is_of_one_seed_or_one_dataset_says_so(report):
    several = copy.deepcopy(report)
    several["queries"]["seeds"] = several["similarity"]["seeds"] = 3
    for part in ("systems", "tests"):
        several[part] += [row | {"dataset": "second"} for row in several[part]]
    alone, together = (
        {kind: " ".join(pages_of(each)[f"report.{kind}"].split()) for kind in ("md", "html")}
        for each in (report, several)
    )
    place, queries = report["headline"]["dataset"], report["similarity"]["queries"]
    for page in together.values():
        assert f"{queries} queries of {place}" in page
    assert f" on {place}: query only →" in together["md"]
    assert "by the texts of the first of 3 seeds" in together["md"]
    assert "Scores are means over 3 seeds; ranks, passages" in together["html"]
    assert not [
        page for page in alone.values() if "of the first of" in page or "means over" in page
    ]


def test_the_test_that_was_made_has_one_name_everywhere(report, pages):
    """Three clusters are too few for the t-test that was asked for."""
    assert {row["clusters"] for row in report["tests"]} == {3}
    for kind in ("md", "html", "tex"):
        assert "t-test" not in pages[f"report.{kind}"]
        assert "andomisation test" in pages[f"report.{kind}"]
