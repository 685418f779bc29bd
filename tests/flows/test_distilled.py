"""The loop distils the models that it keeps, and measures them on the index that it has."""

import json

import pytest
import tiny_loop
from finished_loop import finished

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.run_records import StepId
from expandr_core.store.store import Store
from flows.presets import resolve
from flows.single_stage import Inputs, single_stage


def test_the_report_has_a_row_without_the_llm_and_the_share_of_the_gain_that_it_keeps(first, store):
    changes = {"enabled": True, "queries": "demo", "epochs": 2, "learning_rate": 0.01}
    distil = tiny_loop.OPTIONS.distil.model_copy(update=changes)
    options = tiny_loop.OPTIONS.model_copy(update={"distil": distil})
    run = finished(store, options)
    best, opened = run.record.best_round, Store(str(store))
    evaluation = StepId("evaluate", 0, "test/distilled/0")
    assert run.record.models["distilled"] == run.artifact("distil", best)
    assert {step for step in run.made if step.stage != "expand"} == {  # nothing is encoded again
        StepId("import_queries"),
        StepId("distil", best),
        evaluation,
        StepId("compare"),
    }
    row = f"test/round-{best}-query/0" if best else "test/query/0"
    used, of_teacher = (
        opened.manifest(run.artifact("evaluate", number, name).key)["inputs"]
        for number, name in ((0, "test/distilled/0"), (best, row))
    )
    assert used["embeddings"] == of_teacher["embeddings"]
    assert used["retriever"] != of_teacher["retriever"] and "expansions" not in used

    report = opened.local(run.record.report)
    found = json.loads((report / "comparison.json").read_text())
    alone, expanded = found["kept"]["alone"], found["kept"]["expanded"]
    asked = [(each["before"], each["after"]) for each in found["contrasts"]]
    assert asked[-2:] == [(alone, "distilled"), ("distilled", expanded)]
    scores = {each["system"]: each["ndcg_at_10"] for each in found["results"]}
    [share] = found["kept_share"]
    assert share["gain"] == pytest.approx(scores[expanded] - scores[alone])
    if share["gain"] > 0:
        kept = scores["distilled"] - scores[alone]
        assert share["kept"] == pytest.approx(kept / share["gain"])
    text = (report / "report.md").read_text()
    assert "distilled, no LLM" in text and "## Kept share of the gain" in text

    prepared = run.artifact("prepare").key
    models = {
        role: made.key for role, made in first.record.models.items() if role in ("llm", "retriever")
    }
    inputs = Inputs(queries=f"{prepared}/retriever.parquet", **models)
    steps = single_stage("distil", options, inputs, store=str(store))
    assert steps[-1].artifact == run.artifact("distil", best)


def test_the_demo_says_how_to_distil_it():
    demo = resolve("demo", JointLoopOptions())
    assert not demo.distil.enabled and demo.distil.queries == "demo"
    assert demo.distil.learning_rate == demo.training.learning_rate
