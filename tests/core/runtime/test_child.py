"""A child process ends with everything that it has started."""

import math
import os
import subprocess
import sys

import psutil
import pytest
from waiting import wait_until

from expandr_core.errors import DataError
from expandr_core.options.generation import TinyLLMOptions
from expandr_core.runtime.child import run_in_child, terminate_tree
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec
from expandr_core.stages.import_model import ImportOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

RANK = """
import os, sys, time
from pathlib import Path
Path(sys.argv[1], os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(600)
"""


def test_ranks_of_torchrun_end_although_each_has_a_session_of_its_own(tmp_path):
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    child = subprocess.Popen([*command, str(program), str(tmp_path)], start_new_session=True)
    written = [tmp_path / "0", tmp_path / "1"]

    def both_run() -> bool:
        assert child.poll() is None
        return all(path.exists() and path.read_text() for path in written)

    wait_until(both_run)
    ranks = [psutil.Process(int(path.read_text())) for path in written]
    assert all(os.getsid(rank.pid) != os.getsid(child.pid) for rank in ranks)
    terminate_tree(child)
    assert child.returncode is not None
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)


def test_a_stage_in_a_child_cannot_read_what_is_typed_at_the_terminal(tmp_path):
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho stdin: $(readlink /proc/$$/fd/0) >&2\nexit 1\n")
    interpreter.chmod(0o755)
    spec = make_spec("import_model", ImportOptions(kind="llm"), sources={})
    terminal, (typed, keys) = os.dup(0), os.pipe()
    os.write(keys, b"y\n")
    os.dup2(typed, 0)
    try:
        with pytest.raises(RuntimeError, match="stdin: /dev/null"):
            run_in_child(spec, Store(str(tmp_path)), no_progress, str(interpreter))
    finally:
        os.dup2(terminal, 0)
        for each in (terminal, typed, keys):
            os.close(each)


def test_an_error_of_the_system_is_told_whatever_is_printed_while_the_process_ends(tmp_path):
    (tmp_path / "file").touch()
    interpreter = tmp_path / "python"
    interpreter.write_text(
        f'#!/bin/sh\n{sys.executable} "$@"\nstatus=$?\nyes junk | head -n 2000 >&2\nexit $status\n'
    )
    interpreter.chmod(0o755)
    spec = make_spec("tiny_llm", TinyLLMOptions(), {})
    store = Store(str(tmp_path / "store"), scratch=tmp_path / "file")
    with pytest.raises(RuntimeError, match=r"ended with 1\n\[Errno 20\] Not a directory: .*/file/"):
        run_in_child(spec, store, no_progress, str(interpreter))


def test_a_specification_that_cannot_be_read_is_the_input_s_fault(tmp_path):
    broken = Artifact(key="dpo-1", digest="0", counts={"loss": math.nan})  # which JSON has not
    spec = make_spec("import_model", ImportOptions(kind="llm"), {"adapter": broken})
    with pytest.raises(DataError, match=r"for StageSpec\n.*counts\.loss"):
        run_in_child(spec, Store(str(tmp_path)), no_progress)


def test_a_process_ends_after_what_is_registered_and_before_any_object_is_freed():
    program = """
import atexit
from expandr_core.runtime.child_protocol import end
class Model:
    def __del__(self):
        print("freed")
model = Model()
atexit.register(print, "registered")
print("written")
end(7)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("written\nregistered\n", 7)
