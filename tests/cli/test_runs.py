"""`expandr runs`: every run of a store, those that go on and that failed too."""

import os
import platform
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.errors import DataError
from expandr_core.options.data import DemoWorldOptions
from expandr_core.store.manifests import flow_run_of
from expandr_core.store.store import Store

WIDE = {"COLUMNS": "250"}


def listed(store: Store, *options: str) -> list[str]:
    command = ["runs", "--store", store.url, *options]
    result = CliRunner().invoke(app, command, env=WIDE)
    assert result.exit_code == 0, result.output
    return [" ".join(line.split()) for line in result.output.splitlines()]


def note(store: Store, name: str, **facts: object) -> None:
    known = {"name": name, "state": "running", "host": platform.node(), "process": os.getpid()}
    now = datetime.now(UTC).isoformat()
    store.write_note(name, {**known, "started": now, "preset": "none", "data": "demo", **facts})


def test_a_store_without_artifacts_is_called_so_when_it_is_verified(tmp_path):
    for keys, said in ([], f"no artifact in {tmp_path}"), (["dpo-1"], "begins with 'dpo-1'"):
        result = CliRunner().invoke(app, ["verify", *keys, "--store", str(tmp_path)], env=WIDE)
        assert result.exit_code == 2 and said in result.output, result.output


def test_runs_that_go_on_or_failed_or_were_killed_are_told_apart(tmp_path):
    store = Store(str(tmp_path))
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    note(
        store,
        "1",
        tags=["dpo.beta=0.2", "expandr", "configs/a.yaml"],
        state="failed",
        message="no [data]",
    )
    note(store, "2", process=2**22 + 1)  # more than Linux gives
    note(store, "3", started=yesterday)  # this process is younger
    note(store, "4", preset="tiny", data="beir/scifact")
    note(store, "5", host="another")
    assert listed(store) == [
        "run state config preset data headline",
        "1 failed configs/a.yaml, dpo.beta=0.2 none demo no [data]",
        "2 killed none demo",
        "3 killed none demo",
        "4 running tiny beir/scifact",
        "5 running none demo",
    ]
    assert listed(store, "--limit", "1")[1:] == [
        "5 running none demo",
        "and 4 before; --limit shows more",
    ]


def test_a_store_without_runs_says_so(tmp_path):
    assert listed(Store(str(tmp_path))) == [f"no runs in {tmp_path}"]


def test_a_record_whose_report_is_gone_is_listed(tmp_path):
    store = Store(str(tmp_path))
    report = {"key": "compare-0123456789abcdef0123", "digest": "", "files": {}}
    store.write_record(
        "1",
        {"name": "1", "report": report, "best_round": 1, "options": {"data": {"collection": "x"}}},
    )
    assert listed(store)[1] == "1 completed x its report cannot be read (FileNotFoundError)"


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("error", "state", "message"),
    [(DataError("wrong"), "failed", "wrong"), (KeyboardInterrupt(), "interrupted", "")],
)
def test_a_run_that_ends_too_early_leaves_a_note(tmp_path, monkeypatch, error, state, message):
    from flows.joint_loop import joint_loop
    from flows.run_record import said_of_it

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("flows.joint_loop.import_models", fail)
    store = Store(str(tmp_path))
    with said_of_it(["my.yaml"]), pytest.raises(type(error)):
        joint_loop(preset="tiny", store=store.url)
    [found] = store.notes()
    assert (found["state"], found["message"], found["preset"]) == (state, message, "tiny")
    assert (found["tags"], found["data"], found["steps"]) == (["my.yaml"], "demo", [])
    assert store.records() == []


def test_the_version_is_told():
    said = CliRunner().invoke(app, ["--version"])
    assert said.exit_code == 0
    assert said.output.startswith("expandr ") and "Prefect 3." in said.output


@pytest.mark.usefixtures("prefect_server")
def test_a_fresh_run_takes_what_it_made_itself_and_nothing_of_another_run(tmp_path):
    from prefect import flow
    from prefect.runtime import flow_run

    from tasks.pipeline import Pipeline

    store = Store(str(tmp_path))
    world = DemoWorldOptions(
        instruct_entities=3,
        train_entities=3,
        dev_entities=3,
        test_entities=3,
        questions_per_aspect=1,
    )

    @flow(name="fresh")
    def fresh() -> tuple[str, list[str]]:
        pipeline = Pipeline(store.url, fresh=True)
        makers = []
        for name in ("make", "find"):
            made = pipeline.step("demo_world", {}, name, options=world, name=name)
            makers.append(flow_run_of(store.manifest(made.key)))
        return str(flow_run.id), makers

    for own, makers in (fresh(), fresh()):
        assert makers == [own, own]


@pytest.mark.parametrize("command", [["search", "wings", "--run"], ["plan", "--run"]])
def test_a_run_that_keeps_no_best_models_is_named_as_what_it_is(tmp_path, command):
    Store(str(tmp_path)).write_record("20260101-hare", {"kind": "ablate", "name": "20260101-hare"})
    for name, what in {"2026": "20260101-hare is a run of ablate", "none": "no run 'none'"}.items():
        result = CliRunner().invoke(app, [*command, name, "--store", str(tmp_path)])
        assert result.exit_code == 2 and what in " ".join(result.output.split())


@pytest.mark.parametrize("command", ["promote", "show"])
def test_a_run_that_failed_is_not_called_unknown(tmp_path, command):
    store = Store(str(tmp_path))
    note(store, "20260102-slow-cat", state="failed", message="no space")
    if command == "promote":
        said = CliRunner().invoke(app, ["promote", "20260102", "--store", store.url], env=WIDE)
        assert said.exit_code == 2
        assert "20260102-slow-cat has not finished (failed: no space)" in said.output
    else:
        said = CliRunner().invoke(app, ["show", "20260102", "--store", store.url], env=WIDE)
        assert "no space" in said.output, said.output
