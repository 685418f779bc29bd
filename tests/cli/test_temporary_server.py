"""Prefect's server of one command: it is started again if it dies, and gone when the command is."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.logging import disable_run_logger
from waiting import wait_until

from deployments.connection import asked_of
from expandr_cli.temporary_server import TemporaryServer, run_flow
from expandr_core.errors import DataError
from expandr_core.store.filesystems import flock
from tasks.progress import only_shown, progress

ROOT = Path(__file__).parents[2]
COMMAND = """
import logging, os, sys
logging.getLogger("expandr_core").setLevel("INFO")
logging.getLogger("expandr_core").addHandler(logging.StreamHandler(sys.stdout))
from expandr_cli.temporary_server import TemporaryServer, run_flow

def warn(message):
    print(message, flush=True)

server = TemporaryServer(dict(os.environ), warn)
print(server.process.pid, server.url, flush=True)
sys.stdin.read()
"""
A_RUN = """
from prefect import flow, task
from expandr_cli.temporary_server import prefect_server

@task
def step():
    pass

@flow
def steps():
    for _ in range(3):
        step()

with prefect_server(print):
    steps()
"""


def environment(home: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
    settings = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    return own | settings | {"PYTHONPATH": str(ROOT)}


def command_with_a_server(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        env=environment(home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_server_that_dies_is_replaced_and_a_killed_command_takes_it_along(tmp_path):
    with command_with_a_server(tmp_path) as command:
        try:
            assert command.stdout is not None
            number, url = command.stdout.readline().split()
            first = psutil.Process(int(number))
            assert os.getsid(first.pid) == first.pid  # Ctrl-C in the terminal does not reach it
            first.kill()
            warning = command.stdout.readline()
            assert warning.startswith("Prefect's temporary server died (status -9); restarting")
            assert httpx.get(f"{url}/health", timeout=300).is_success
            [second] = psutil.Process(command.pid).children()
        finally:
            command.send_signal(signal.SIGKILL)
    second.wait(300)
    port = int(url.split(":")[-1].partition("/")[0])
    with socket.socket() as asking:
        assert asking.connect_ex(("127.0.0.1", port)) != 0


def test_first_starts_at_the_same_time_migrate_the_new_database_in_turns(tmp_path):
    """Those that migrate it together often fail with "duplicate column name"."""
    home = tmp_path / "new"
    turn = home / "expandr-start.lock"

    def migrated_to() -> list[tuple[str]]:
        with closing(sqlite3.connect(home / "prefect.db")) as database:
            return database.execute("SELECT version_num FROM alembic_version").fetchall()

    with flock(turn):
        command = command_with_a_server(home)
        assert command.stdout and "waiting" in command.stdout.readline()
        assert not psutil.Process(command.pid).children()
    with command:
        wait_until(psutil.Process(command.pid).children)
        with flock(turn):
            version = migrated_to()
        assert "http" in command.stdout.readline()
        assert migrated_to() == version


def test_what_became_of_tasks_is_written_down_before_the_command_ends(tmp_path):
    """The server keeps it for a while, here for longer than the command lasts."""
    later = {"PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "600"}
    command = [sys.executable, "-c", A_RUN]
    subprocess.run(command, env=environment(tmp_path) | later, check=True, capture_output=True)
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as database:
        states = database.execute("SELECT state_type FROM task_run").fetchall()
    assert states == [("COMPLETED",)] * 3


def test_a_server_that_does_not_start_is_one_sentence(tmp_path):
    broken = {"PYTHONHOME": str(tmp_path)}
    with pytest.raises(DataError, match=r"does not start \(.*encodings.*PREFECT_HOME") as error:
        TemporaryServer(broken, print)
    assert "\n" not in str(error.value)


def test_work_goes_on_where_prefect_cannot_show_it():
    with disable_run_logger(), only_shown("the report"):
        raise httpx.ConnectError("refused")


def test_progress_that_cannot_be_shown_is_tried_once_a_stage(monkeypatch):
    tries = []

    def refused(**_: object) -> None:
        tries.append(1)
        raise httpx.ConnectError("refused")

    monkeypatch.setattr("tasks.progress.create_progress_artifact", refused)
    with disable_run_logger(), progress("train") as report:
        for done in (0, 5, 5):
            report(done, 5, "steps")
    assert tries == [1]


def test_only_errors_of_prefects_server_are_told_as_such():
    url = "http://127.0.0.1:4200/api"
    errors = [
        httpx.ConnectError("refused", request=httpx.Request("GET", address))
        for address in (f"{url}/flow_runs", "https://huggingface.co/api/models")
    ]
    assert [asked_of(url, error) for error in errors] == [True, False]
    assert not asked_of(url, httpx.ConnectError("refused"))


@pytest.mark.parametrize(
    ("path", "status", "asked"),
    [
        ("/flow_runs/", 409, 4),
        ("/flows/", 409, 4),
        ("/flow_runs/", 404, 1),
        ("/artifacts/", 409, 1),
    ],
)
def test_a_conflict_about_a_run_that_has_not_begun_is_asked_again(path, status, asked):
    request = httpx.Request("POST", f"http://127.0.0.1:4200/api{path}")
    tries = []

    def flow() -> None:
        tries.append(path)
        raise httpx.HTTPStatusError("", request=request, response=httpx.Response(status))

    with pytest.raises(httpx.HTTPStatusError):
        run_flow(flow)
    assert len(tries) == asked
