"""Ctrl-C, SIGTERM and a closed terminal end a command soon, and no run stays Running."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from waiting import SECONDS

ROOT = Path(__file__).parents[2]
SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
WAITING = """
import threading
from expandr_cli.terminal import user_errors
with user_errors("Do it again"):
    print("ready", flush=True)
    threading.Event().wait()
"""
WITH_A_SERVER = """
import atexit, psutil, threading
from expandr_cli.temporary_server import prefect_server
from expandr_cli.terminal import notify, user_errors

def at_exit():  # when Prefect's threads send their events
    try:
        psutil.Process().children()[0].wait(1)
    except psutil.TimeoutExpired:
        print("the server lives", flush=True)

with user_errors("Do it again"), prefect_server(notify):
    atexit.register(at_exit)
    print("ready", flush=True)
    threading.Event().wait()
"""
DEAF = """
import threading
from expandr_cli.terminal import user_errors
with user_errors("Do it again"):
    for said in ("ready", "deaf"):
        try:
            print(said, flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
"""
A_RUN = """
import subprocess, sys, threading
from prefect import flow, task
from prefect.runtime import flow_run
from expandr_cli.terminal import user_errors

@task
def step():
    print(flow_run.id, flush=True)
    subprocess.Popen([sys.executable, "-c", {!r}], start_new_session=True).wait()  # none but us kills it

@flow(name="interrupted")
def interrupted():
    try:
        step()
    except BaseException:
        print("ending", flush=True)
        if len(sys.argv) > 1:  # an end that would take for ever
            threading.Event().wait()
        raise

with user_errors("Do it again"):
    interrupted()
"""


def _listen() -> None:
    """Handle signals as by default: `nohup` and a shell's `&` leave some ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def program(text: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program in a process group of its own, as a shell runs a command."""
    process = subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_listen,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, process.communicate()[1]
    return line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_with_one_sentence_and_its_status(number):
    with program(WAITING) as process:
        assert line_of(process) == "ready"
        process.send_signal(number)
        assert process.communicate(timeout=SECONDS)[1] == "interrupted.\n"
        assert process.returncode == 128 + number


def test_prefect_s_server_lives_until_the_command_exits(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with program(WITH_A_SERVER) as process:
        assert line_of(process) == "ready"
        [server] = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=SECONDS) == ("the server lives\n", "interrupted.\n")
        assert not server.is_running()


def test_what_does_not_end_by_the_first_signal_is_ended_by_the_second():
    with program(DEAF) as process:
        assert line_of(process) == "ready"
        process.send_signal(signal.SIGINT)
        assert line_of(process) == "deaf"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=SECONDS)[1] == "interrupted.\n"
        assert process.returncode == 130


def test_a_signal_that_the_shell_ignores_is_ignored():
    """As under nohup."""
    text = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + WAITING
    with program(text) as process:
        assert line_of(process) == "ready"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_was_interrupted_is_marked_and_its_processes_are_gone(signals):
    """The second signal comes while the run is being ended."""
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    text = f"import os; os.environ.update({settings!r})" + A_RUN.format(SLEEPER)
    with program(text, *["slow"] * (signals - 1)) as process:
        run_id = line_of(process)
        assert line_of(process) == "ready"  # of the child
        [child] = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert line_of(process) == "ending"
        if signals > 1:
            process.send_signal(signal.SIGINT)
        complaint = process.communicate(timeout=SECONDS)[1]
        assert process.returncode == 130
    assert "Traceback" not in complaint
    assert "interrupted. Do it again\n" in complaint
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(run_id).state_name == "Crashed"
