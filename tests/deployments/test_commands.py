"""`expandr deploy` and `expandr drain` as commands."""

from typing import Any

import pytest
from prefect.client.orchestration import get_client
from typer.testing import CliRunner

from expandr_cli.main import app

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


@pytest.mark.usefixtures("client")
def test_pools_are_drained_and_resumed():
    drained = RUNNER.invoke(app, ["drain", "gpu-infer", "gpu-train", "--timeout", "30"])
    assert drained.exit_code == 0, drained.output
    assert "You can stop the workers" in drained.output
    kept = RUNNER.invoke(app, ["deploy", "--store", "/shared/store"]).output
    assert kept.count("yours: paused") == 2
    assert RUNNER.invoke(app, ["drain", "gpu-infer", "gpu-train", "--resume"]).exit_code == 0
    assert "paused" not in RUNNER.invoke(app, ["deploy", "--store", "/shared/store"]).output


def test_deploying_says_what_to_do_next():
    said = RUNNER.invoke(app, ["deploy", "--store", "/shared/store"]).output
    assert "prefect worker start --pool cpu\n" in said
    assert "prefect worker start --pool gpu-train --limit 1\n" in said
    assert "by Run on http://127.0.0.1:" in said
    assert "prefect deployment run joint-loop/manual --param preset=tiny\n" in said
    with get_client(sync_client=True) as server:
        client: Any = server
        client.send_worker_heartbeat("cpu", "somebody", heartbeat_interval_seconds=30)
        said = RUNNER.invoke(app, ["deploy", "--store", "/shared/store"]).output
        client.request("DELETE", "/work_pools/cpu/workers/somebody")
    assert "--pool cpu" not in said and "--pool gpu-train" in said


def test_less_than_three_heartbeats_are_refused():
    refused = RUNNER.invoke(app, ["deploy", "--store", "/shared/store", "--dead-after", "60"])
    assert refused.exit_code == 2
    assert "--dead-after 60" in refused.stderr and "90 or more" in refused.stderr
