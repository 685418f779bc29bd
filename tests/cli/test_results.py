"""What a run says at its end, in a terminal of 80 columns."""

import json
from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
from store_keys import full

from expandr_cli.results import print_comparison, print_summary
from expandr_cli.terminal import as_written
from expandr_core.evaluation.verdict import verdict
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from flows.run_record import RunRecord

TITLES = {
    "bm25": "BM25",
    "bm25-untrained": "BM25, + untrained expansion",
    "query": "query only",
    "aligned-1": "+ DPO'd expansion, round 1",
    "round-1": "joint round 1",
    "round-1-query": "joint round 1, query only",
}
EFFECTS = {"aligned-1": "better", "round-1": "worse"}
MANIFEST = {
    "inputs": {}, "sources": {}, "seed": 0, "counts": {}, "options": {}, "libraries": {},
    "seconds": 1.0, "commit": "", "hardware": "", "version": 1,
    "created": "2026-01-01T00:00:00+00:00",
}  # fmt: skip


def comparison(**changes: Any) -> dict[str, Any]:
    """One of two datasets' worth of everything that the terminal shows."""
    systems = [
        {"name": name, "title": title, "baseline": "query" if name in EFFECTS else "", "seeds": 1}
        for name, title in TITLES.items()
    ]
    contrasts = [
        {
            "dataset": "test", "before": "query", "after": name, "effect": effect, "clusters": 40,
            "queries": 40, "difference": 0.1 if effect == "better" else -0.1, "p": 0.006,
            "corrected_p": 0.012,
            "significant": True,
        }
        for name, effect in EFFECTS.items()
    ]  # fmt: skip
    tested = {contrast["after"]: contrast for contrast in contrasts}
    nothing = {
        "difference": None,
        "p": None,
        "corrected_p": None,
        "significant": None,
        "effect": None,
    }
    results = [
        {
            "system": name, "dataset": "test", "queries": 40,
            "ndcg_at_10": 0.9 - number / 10, "ndcg_at_10_deviation": None,
            "recall_at_100": 1.0, "recall_at_100_deviation": None,
            **{field: tested.get(name, nothing)[field] for field in nothing},
        }
        for number, name in enumerate(TITLES)
    ]  # fmt: skip
    made = {
        "schema": 1, "metric": "ndcg_at_10", "test": "t", "significance_level": 0.05,
        "systems": systems, "datasets": [{"name": "test"}], "results": results, "means": [],
        "contrasts": contrasts, "warnings": ["half of the texts [/] are empty"],
        "kept": {"expanded": "round-1", "alone": "round-1-query", "reason": "Round 1 is kept."},
        **changes,
    }  # fmt: skip
    return made | {"verdict": verdict(made)._asdict()}


def printed(show, *what: Any) -> list[str]:
    file = StringIO()
    show(as_written(file=file, width=80), *what)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_the_table_fits_and_says_which_way_a_star_goes():
    lines = printed(print_comparison, comparison())
    assert max(map(len, lines)) <= 80
    rows = {line.split("  ")[0]: line for line in lines}
    assert "vs. query only" in rows["system"]
    assert "+0.100 * better  0.012" in rows["+ DPO'd expansion, round 1"]
    assert "-0.100 * worse  0.012" in rows["joint round 1"]
    assert "BM25" in rows and "joint round 1, query only" in rows
    assert "BM25, + untrained expansion" not in rows  # report.md has it
    assert not [line for line in lines if line.count("*") and "0.0" not in line]
    assert "Warning: half of the texts [/] are empty." in lines


def test_differences_by_cluster_are_told_from_those_of_the_scores():
    def said(**changes: int) -> str:
        made = comparison()
        made["contrasts"] = [each | changes for each in made["contrasts"]]
        return " ".join(printed(print_comparison, made))

    assert "Each cluster of queries counts once, in differences, too" in said(clusters=15)
    assert "cluster" not in said()
    assert "p: paired t-test of nDCG@10" in said()
    assert "p: paired randomisation test of nDCG@10" in said(clusters=9)
    one_of_two = comparison()
    one_of_two["contrasts"][0]["clusters"] = 9
    lines = " ".join(printed(print_comparison, one_of_two))
    assert "p: paired t-test (randomisation test below 10 observations) of nDCG@10" in lines


def test_names_in_brackets_or_colons_are_shown_as_they_are():
    """Rich would read them as its markup, and as emoji."""
    named = comparison(datasets=[{"name": "law[old]"}, {"name": "[/INST] :cat:"}], means=[])
    named["results"] = [
        row | {"dataset": each["name"]} for row in named["results"] for each in named["datasets"]
    ]
    named["systems"][2]["title"] = "[raw] prompt"
    lines = printed(print_comparison, named)
    assert "law[old]: 40 queries" in lines and "[/INST] :cat:: 40 queries" in lines
    assert len([line for line in lines if line.startswith("[raw] prompt")]) == 3


def test_several_datasets_begin_with_their_means():
    means = [
        {
            "system": name, "title": title, "scope": scope, "ndcg_at_10": 0.5,
            "ndcg_at_10_deviation": 0.01,
        }
        for title, scope in {"BEIR, out-of-domain (2 of 11)": "out-of-domain", "BEIR": "all"}.items()
        for name in TITLES
    ]  # fmt: skip
    several = comparison(means=means, datasets=[{"name": "test"}, {"name": "scifact"}])
    several["results"] += [row | {"dataset": "scifact"} for row in several["results"]]
    lines = printed(print_comparison, several)
    assert max(map(len, lines)) <= 80
    titles = ["nDCG@10, means over datasets", "test: 40 queries", "scifact: 40 queries"]
    assert [line for line in lines if line in titles] == titles
    assert any("0.500 ± 0.010" in line for line in lines)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def finished(store: Store, best_round: int, **changes: Any) -> RunRecord:
    def put(name: str, text: str) -> Artifact:
        folder = store.scratch / name
        folder.mkdir(parents=True)
        (folder / "comparison.json").write_text(text)
        return store.commit(full(name), folder, [], MANIFEST)

    now = datetime.now(UTC)
    return RunRecord(
        name="20260101T000000-a-run", flow_run_id="1", store=store.url, started=now, finished=now,
        options=JointLoopOptions(), best_round=best_round, steps=[],
        report=put("compare-1", json.dumps(comparison(**changes))),
        models={role: put(f"{role}-1", role) for role in ("llm", "retriever", "corpus")},
    )  # fmt: skip


def test_the_best_models_are_named_by_key_and_folder(store):
    run = finished(store, 1)
    lines = printed(print_summary, store, run)
    assert "The best models, of round 1" in lines
    for role in ("llm", "retriever"):
        assert any(line.endswith(f"/artifacts/{run.models[role].key}") for line in lines)
    assert not [line for line in lines if run.options.llm.model in line.split()]


def test_models_of_the_start_are_not_called_the_best(store):
    lines = printed(print_summary, store, finished(store, 0))
    assert not [line for line in lines if line.startswith("The best models")]


def test_searching_is_advised_with_expansions_only_if_they_help(store, tmp_path):
    hurts = printed(print_summary, store, finished(store, 1))
    [search] = [line.strip() for line in hurts if "expandr search" in line]
    assert search.startswith('expandr search "your question" --store ')  # 0.5 with, 0.4 without
    kept = {"expanded": "round-1-query", "alone": "round-1", "reason": "Round 1 is kept."}
    other = Store(str(tmp_path / "other"))
    helps = printed(print_summary, other, finished(other, 1, kept=kept))
    [search] = [line.strip() for line in helps if "expandr search" in line]
    assert "--no-expand" in search
    assert "Expansions at search were not tested by themselves: 0.500 without, 0.400 with." in helps


def test_rm3_is_shown_beside_bm25():
    made = comparison()
    made["systems"].append({"name": "bm25-rm3", "title": "RM3", "baseline": "", "seeds": 1})
    made["results"].append(made["results"][0] | {"system": "bm25-rm3"})
    assert any(line.startswith("RM3") for line in printed(print_comparison, made))


def test_the_best_system_is_shown_as_the_verdict_names_it():
    made = comparison()
    made["systems"].append({"name": "greedy", "title": "joint, greedy", "baseline": "", "seeds": 1})
    made["results"].append(made["results"][-1] | {"system": "greedy", "ndcg_at_10": 0.95})
    made["verdict"] = verdict(made)._asdict()
    lines = printed(print_comparison, made)
    assert any(line.startswith("The best system is joint, greedy") for line in lines)
    assert any(line.startswith("joint, greedy  ") for line in lines)
