"""A store that was moved, restored under another name, or made read-only is read like any other."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from store_keys import full
from typer.testing import CliRunner

from expandr_cli import search
from expandr_cli.main import app
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import Step, StepId
from expandr_core.store.store import Store
from flows.run_record import RunRecord

STORY = {
    "counts": {}, "inputs": {}, "sources": {}, "options": {}, "libraries": {}, "seed": 0,
    "seconds": 1.0, "commit": "", "hardware": "", "version": 1,
    "created": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
REPORT = {
    "schema": 1, "metric": "ndcg_at_10", "test": "t", "significance_level": 0.05,
    "systems": [{"name": "query", "title": "the query", "baseline": "", "seeds": 1}],
    "datasets": [{"name": "test", "benchmark": "other", "domain": "other", "subsets": [""]}],
    "results": [{
        "system": "query", "dataset": "test", "queries": 1, "p": None, "effect": None,
        "ndcg_at_10": 0.5, "ndcg_at_10_deviation": None,
        "recall_at_100": 0.5, "recall_at_100_deviation": None,
    }],
    "means": [], "contrasts": [], "warnings": [], "kept": None,
    "verdict": {"sentences": ["The best system is the query."], "expand": None},
}  # fmt: skip


def put(store: Store, name: str, text: str) -> Artifact:
    folder = store.scratch / name
    folder.mkdir()
    (folder / "comparison.json").write_text(text)
    return store.commit(full(name), folder, [], STORY)


def finished_run(folder: Path) -> None:
    """Make a store with the record of a run of the loop, and its artifacts."""
    store = Store(str(folder), folder.parent / "scratch")
    report = put(store, "compare-1", json.dumps(REPORT))
    models = {role: put(store, f"{role}-1", role) for role in ("llm", "retriever", "corpus")}
    now = datetime.now(UTC)
    run = RunRecord(
        name="20260101T000000-a-run", flow_run_id="1", store=str(folder), started=now, finished=now,
        options=JointLoopOptions(), report=report, best_round=0, models=models,
        steps=[Step(id=StepId(role), title=role, artifact=made) for role, made in models.items()],
    )  # fmt: skip
    store.write_record(run.name, run.model_dump(mode="json"))


@pytest.fixture(params=["restored", "other::store", "with space"])
def moved(tmp_path, request, monkeypatch) -> Path:
    finished_run(tmp_path / "first" / "store")
    (tmp_path / "first").rename(tmp_path / request.param)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path / request.param / "store"


def everything_in(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_a_moved_store_is_shown_and_verified_and_nothing_is_written(moved, tmp_path):
    before = everything_in(moved.parent)
    for command, said in (
        (["show", "latest"], "the query"),
        (["show", full("llm-1")], "lineage"),
        (["verify"], "4 of 4 artifacts are intact"),
    ):
        shown = CliRunner().invoke(app, [*command, "--store", str(moved)])
        assert shown.exit_code == 0 and said in shown.output, shown.output
        assert f"{tmp_path}/first" not in shown.output
    assert everything_in(moved.parent) == before
    assert not (tmp_path / "first").exists()


def test_what_is_advised_names_the_store_where_it_is_now(moved, monkeypatch):
    shown = CliRunner().invoke(app, ["show", "latest", "--store", str(moved)])
    quoted = str(moved) if " " not in str(moved) else f"'{moved}'"
    assert f"--store {quoted}" in shown.output
    monkeypatch.setenv("EXPANDR_STORE", str(moved))
    shown = CliRunner().invoke(app, ["show", "latest"])
    assert "expandr search" in shown.output and "--store" not in shown.output


def test_a_store_that_is_not_there_is_not_made_by_looking(tmp_path):
    for command in (["show"], ["verify"], ["export-run", "evaluate"], ["search", "what?"]):
        said = CliRunner().invoke(app, [*command, "--store", str(tmp_path / "none")])
        assert said.exit_code == 2, said.output
    assert list(tmp_path.iterdir()) == []


def test_searching_a_read_only_store_writes_nothing(tmp_path, monkeypatch):
    finished_run(tmp_path / "store")
    store = Store(str(tmp_path / "store"))
    record = store.records()[-1]
    kept = Artifact(**record["models"]["corpus"])
    monkeypatch.setattr(Store, "lookup", lambda *_, **__: kept)
    before = everything_in(tmp_path)
    assert search._encoded(store, RunRecord(**record)) == kept
    assert everything_in(tmp_path) == before


def test_the_machine_s_settings_hold_for_every_command(tmp_path, monkeypatch):
    finished_run(tmp_path / "store")
    monkeypatch.setenv("EXPANDR_CACHE_GB", "many")
    for command in (
        *(["show"], ["verify"], ["runs"], ["gc"], ["export-run", "evaluate"], ["search", "what?"]),
        *(["plan", "--run", "latest"], ["run", "configs/tiny.yaml"]),
    ):
        said = CliRunner().invoke(app, [*command, "--store", str(tmp_path / "store")])
        assert said.exit_code == 2 and "EXPANDR_CACHE_GB" in said.output
