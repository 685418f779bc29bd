"""The loop distils the models that it keeps, and measures them on the index that it has."""

import json
import logging
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_loop
from fastapi.testclient import TestClient
from finished_loop import finished
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_cli.serve import _Finder
from expandr_core.encoders.encode import Encoder
from expandr_core.options.loop import JointLoopOptions
from expandr_core.serving.app import make_app
from expandr_core.serving.server import Limits, Server
from expandr_core.store.run_records import StepId
from expandr_core.store.store import Store
from flows.presets import resolve
from flows.run_record import RunRecord
from flows.single_stage import Inputs, single_stage

ENCODING = tiny_loop.OPTIONS.measured_retriever.encoding
QUESTION = "what is it for?"


def searched(store: str, *more: str) -> list[str]:
    """Return the passages that the command finds without the LLM."""
    command = ["search", QUESTION, "--no-expand", "-k", "5", "--run", "latest", "--store", store]
    said = CliRunner().invoke(app, [*command, *more], env={"COLUMNS": "300"})
    assert said.exit_code == 0, said.output
    assert ("with the distilled query encoder" in said.output) != bool(more)
    return re.findall(r"^ +\d+\. \S+  (\S+)", said.output, re.MULTILINE)


def nearest(store: Store, run: RunRecord, student: Encoder) -> list[str]:
    """Rank the passages by the similarity of their vectors with the student's of the question."""
    ids, texts = (
        pq.read_table(store.local(run.models["corpus"]))[name].to_pylist()
        for name in ("passage_id", "text")
    )
    similarities = student.encode_passages(texts) @ student.encode_queries([QUESTION])[0]
    return [ids[row] for row in np.argsort(-similarities)[:5]]


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
        StepId("audit", 0, "test/distilled"),
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

    logging.getLogger("expandr_core").setLevel(logging.INFO)
    student, alone = (searched(str(store), *more) for more in ([], ["--no-distilled"]))
    encoder = Encoder(opened.local(run.record.models["distilled"]), "cpu", ENCODING)
    assert student == nearest(opened, run.record, encoder) != alone
    assert logging.getLogger("expandr_core").level == logging.INFO  # as it was

    served = _Finder(opened, "latest", "none", None, {}).first()
    application = make_app(Server(served, Limits(), lambda _: None, 60))
    with TestClient(application) as client:
        said = client.post("search", json={"query": QUESTION, "k": 5}).json()
        assert said["mode"] == "distilled" and not said["expansion"]
        assert [hit["passage_id"] for hit in said["hits"]] == student
        refused = client.post("expand", json={"query": QUESTION})
        assert refused.status_code == 422 and "a language model is not served" in refused.text
        assert client.get("lineage").json()["modes"] == ["auto", "alone", "distilled"]

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
