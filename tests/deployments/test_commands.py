"""`expandr deploy` and `expandr drain` as commands."""

import pytest
from typer.testing import CliRunner

from flows.cli import app

pytestmark = pytest.mark.usefixtures("prefect_server")
RUNNER = CliRunner(env={"EXPANDR_STORE": "", "EXPANDR_NOTIFY_URL": ""})


def test_the_second_deploy_says_unchanged():
    first = RUNNER.invoke(app, ["deploy", "--store", "/shared/store", "--reset"])
    again = RUNNER.invoke(app, ["deploy", "--store", "/shared/store"])
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert "joint-loop/weekly" in again.output
    assert again.output.endswith("\nunchanged\n")


def test_without_a_store_nothing_is_deployed():
    refused = RUNNER.invoke(app, ["deploy"])
    assert refused.exit_code == 2
    assert "--store s3://bucket/prefix" in refused.stderr


def test_pools_are_drained_and_resumed():
    RUNNER.invoke(app, ["deploy", "--store", "/shared/store"])
    drained = RUNNER.invoke(app, ["drain", "gpu-infer", "gpu-train", "--timeout", "30"])
    assert drained.exit_code == 0
    assert "may be stopped" in drained.output
    kept = RUNNER.invoke(app, ["deploy", "--store", "/shared/store"]).output
    assert kept.count("yours: paused") == 2
    assert RUNNER.invoke(app, ["drain", "gpu-infer", "gpu-train", "--resume"]).exit_code == 0
    assert "paused" not in RUNNER.invoke(app, ["deploy", "--store", "/shared/store"]).output
