"""A run ends with its report, in the store and in Prefect; a run whose report fails has its results."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import tiny_loop
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.lineage.explain import check_all, explain
from expandr_core.lineage.finding import find_run
from expandr_core.reports.report import report_of
from expandr_core.store.artifacts import Artifact
from expandr_core.store.garbage import find_garbage
from expandr_core.store.store import Store
from flows.joint_loop import joint_loop
from flows.run_record import RunRecord

EVALUATE = tiny_loop.OPTIONS.evaluate.model_copy(update={"report": True})
OPTIONS = tiny_loop.OPTIONS.model_copy(update={"evaluate": EVALUATE})


def shown(record: RunRecord) -> str:
    """Return what Prefect shows as the report of a run."""
    wanted = ArtifactFilter(
        key=ArtifactFilterKey(any_=["joint-loop-report"]),
        flow_run_id=ArtifactFilterFlowRunId(any_=[record.flow_run_id]),
    )
    with get_client(sync_client=True) as client:
        [found] = client.read_artifacts(artifact_filter=wanted)
    return str(found.data)


def test_a_run_ends_with_its_report_and_the_index(store):
    record = joint_loop(options=OPTIONS, store=str(store))
    folder = Path(store, "reports", record.name)
    assert sorted(each.name for each in folder.iterdir()) == [
        *("report.csv", "report.html", "report.json", "report.md", "report.tex")
    ]
    assert shown(record) == (folder / "report.md").read_text()
    index = Path(store, "reports", "index.html").read_text()
    assert f'href="{record.name}/report.html"' in index
    said = CliRunner().invoke(app, ["show", record.name, "--store", str(store)])
    assert str(folder / "report.html") in said.output
    later = datetime.now(UTC) + timedelta(days=1)
    found = find_garbage(Store(str(store)), None, later)
    assert not [each for each in found if record.name in each.name]


def test_intervals_and_audits_of_a_report_are_explained_and_computed_again(first, store):
    opened, run = find_run([Store(str(store))], first.record.name)
    checks = {each["what"]: each["check"] for each in check_all(opened, run)}
    assert all(each["agrees"] for each in checks.values())
    report = report_of(opened, run)
    for row in report["systems"]:
        assert checks[f"test/{row['system']}/ndcg@10_low"]["value"] == row["low"]
    for row in report["tests"]:
        name = f"test/{row['before']}..{row['after']}/difference_high"
        assert checks[name]["value"] == row["high"]
    assert [audit["system"] for audit in report["leakage"]] == ["control", "round-1"]
    for audit in report["leakage"]:
        name = f"test/{audit['system']}/leakage.any.queries"
        assert checks[name]["value"] == audit["any"]["queries"]
        found = explain(opened, run, name)
        assert opened.local(Artifact(key=found["audit"].partition("/")[0], digest="")).is_dir()
        assert [each["system"] for each in found["evaluations"]] == [audit["system"]]


def test_a_run_whose_report_cannot_be_written_has_its_results(first, store, caplog):
    Path(store, "reports").write_text("no folder")
    record = joint_loop(options=OPTIONS, store=str(store))
    assert Store(str(store)).records()[-1]["name"] == record.name
    tables = Store(str(store)).local(first.record.report) / "report.md"
    assert shown(record) == tables.read_text()
    assert f"`expandr report {record.name}`" in caplog.text
    said = CliRunner().invoke(app, ["report", record.name, "--store", str(store)])
    [line] = said.stderr.splitlines()  # before anything is drawn
    assert said.exit_code == 2
    assert f"{store}/reports: nothing can be written there" in line


def test_the_command_writes_the_report_of_a_run_into_a_folder(first, store, tmp_path):
    folder = tmp_path / "written"
    said = CliRunner().invoke(
        app, ["report", first.record.name, str(folder), "--store", str(store)]
    )
    assert said.exit_code == 0, said.output
    assert str(folder / "report.html") in said.output and "joint round 1" in said.output
    assert (folder / "report.html").stat().st_size > 100_000
    assert not Path(store, "reports").exists()
