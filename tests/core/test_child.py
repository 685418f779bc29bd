"""A child process ends with everything that it has started."""

import os
import subprocess
import sys
import time

import psutil

from expandr_core.child import end_tree

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
    deadline = time.monotonic() + 120
    written = [tmp_path / "0", tmp_path / "1"]
    while not all(path.exists() and path.read_text() for path in written):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    ranks = [psutil.Process(int(path.read_text())) for path in written]
    assert all(os.getsid(rank.pid) != os.getsid(child.pid) for rank in ranks)
    end_tree(child)
    assert child.returncode is not None
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
