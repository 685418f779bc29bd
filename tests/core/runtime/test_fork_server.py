"""Forked stages are like children that are started: what they make, how they end, and with whom."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from expandr_core.errors import DataError
from expandr_core.options.data import DemoWorldOptions
from expandr_core.runtime.child import run_in_child, terminate_tree
from expandr_core.runtime.fork_server import Forked, ForkServer
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages.import_model import ImportOptions
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store

SMALL = DemoWorldOptions(instruct_entities=4, train_entities=6, dev_entities=3, test_entities=3)
LONG = DemoWorldOptions(train_entities=10**6)  # it would take minutes
PROGRAM = """
import os, sys
from expandr_core.runtime.fork_server import ForkServer
server = ForkServer([])  # kept: without it the server ends, and with it the stage
forked = server.fork([sys.argv[1], sys.argv[2]], sys.stderr.buffer, dict(os.environ))
print(forked.pid, flush=True)
forked.wait()
"""


def fork_of(spec: StageSpec, store: Store) -> Artifact:
    return run_in_child(spec, store, no_progress, environment=dict(os.environ))


def write(spec: StageSpec, folder: Path) -> Path:
    path = folder / "spec.json"
    path.write_text(spec.model_dump_json())
    return path


def tree_of(pid: int) -> list[psutil.Process]:
    """Return the process that waits for a stage, and the stage."""
    waiting = psutil.Process(pid)
    while not (stages := waiting.children()):
        pass
    return [waiting, *stages]


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=300)[1]


@pytest.fixture(scope="module")
def server():
    """Without libraries: they take time to import, and change nothing."""
    server = ForkServer([])
    yield server
    server.close()


@pytest.fixture
def forking(server, monkeypatch):
    """Let this server fork for all children."""
    monkeypatch.setattr("expandr_core.runtime.fork_server._children", 1)
    monkeypatch.setattr("expandr_core.runtime.fork_server._server", server)


@pytest.fixture
def forked(server, tmp_path) -> Forked:
    """A stage that takes long."""
    spec = write(make_spec("demo_world", LONG, device="cpu"), tmp_path)
    with (tmp_path / "stderr").open("wb") as errors:
        return server.fork([str(spec), str(tmp_path / "store")], errors, dict(os.environ))


def test_a_fork_makes_what_this_process_makes(forking, tmp_path):
    for seed in (1, 2):
        spec = make_spec("demo_world", SMALL, seed=seed, device="cpu")
        made = run_in_child(
            spec, Store(str(tmp_path / "forked")), no_progress, environment=dict(os.environ)
        )
        assert made == run_stage(spec, Store(str(tmp_path / "here")), no_progress)


def test_bad_input_and_faults_are_told_apart(forking, tmp_path):
    store = Store(str(tmp_path))
    spec = make_spec("import_model", ImportOptions(kind="llm", folder=str(tmp_path)), device="cpu")
    with pytest.raises(DataError):
        fork_of(spec, store)
    broken = make_spec("demo_world", SMALL, device="cpu")
    broken.runtime["options"] = None
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1.*Traceback"):
        fork_of(broken, store)


def test_a_stage_that_is_killed_says_so(forked):
    waiting, stage = tree_of(forked.pid)
    stage.kill()
    assert forked.wait() == -signal.SIGKILL
    assert gone([waiting])


def test_a_stage_that_is_ended_leaves_nothing(forked):
    tree = tree_of(forked.pid)
    terminate_tree(forked)
    assert gone(tree)


def test_a_stage_ends_with_the_process_that_asked_for_it(tmp_path):
    spec = write(make_spec("demo_world", LONG, device="cpu"), tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(spec), str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout
        tree = tree_of(int(asking.stdout.readline()))
        server = tree[0].parent()
        asking.kill()
    assert server and gone([*tree, server])


def test_a_fork_is_in_the_folder_of_the_moment(server, tmp_path, monkeypatch):
    write(make_spec("demo_world", SMALL, device="cpu"), tmp_path)
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "stderr").open("wb") as errors:
        forked = server.fork(["spec.json", "store"], errors, dict(os.environ))
    assert '"artifact"' in forked.stdout.read()
    assert forked.wait() == 0


def test_a_fork_for_a_process_that_has_died_says_nothing(tmp_path):
    """A killed command's server is still importing, and finds the request later."""
    program = (
        "import os, sys, signal\n"
        "from expandr_core.runtime.fork_server import ForkServer\n"
        "ForkServer([]).fork(['spec', 'store'], sys.stderr.buffer, dict(os.environ))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (killed.returncode, killed.stderr.decode()) == (-signal.SIGKILL, "")


def test_a_fork_whose_end_nobody_waits_for_says_nothing(tmp_path):
    spec = write(make_spec("demo_world", SMALL, device="cpu"), tmp_path)
    program = (
        "import os, sys\n"
        "from expandr_core.runtime.fork_server import ForkServer\n"
        "server, asked = ForkServer([]), (sys.argv[1:], sys.stderr.buffer, dict(os.environ))\n"
        "server.fork(*asked)\n"  # and closes its pipes
        "server.fork(*asked).wait()\n"
    )
    command = [sys.executable, "-c", program, str(spec), str(tmp_path / "store")]
    left = subprocess.run(command, capture_output=True, check=False)
    assert (left.returncode, left.stderr.decode()) == (0, "")


def test_a_stage_that_nobody_listens_to_says_nothing(tmp_path):
    """The command is killed just after its stage has begun."""
    spec = write(make_spec("demo_world", SMALL, device="cpu"), tmp_path)
    for arguments in ([spec, tmp_path / "store"], [tmp_path / "missing", tmp_path / "store"]):
        reading, writing = os.pipe()
        os.close(reading)
        stage = subprocess.Popen(
            [sys.executable, "-m", "expandr_core.runtime.runner", *map(str, arguments)],
            stdout=writing,
            stderr=subprocess.PIPE,
        )
        os.close(writing)
        assert stage.communicate()[1] == b""
        assert stage.returncode == 1
