"""Children that need not import anything: forks of a process that has imported what training needs.

The imports of torch, transformers, TRL and others take every child seconds. A fork has them at once, and
is otherwise a process like any other: its memory is its own, and it ends with everything it started.
This serves stages on a CPU: the driver of a GPU does not survive a fork.

    python -m expandr_core.runtime.fork_server SOCKET [LIBRARY ...]
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NoReturn

from expandr_core.runtime import runner
from expandr_core.runtime.child_protocol import die_with_parent, end

_MESSAGE_BYTES = 1 << 20  # at most
LIBRARIES = ("torch", "sentence_transformers", "peft", "trl.trainer.dpo_trainer")


class Forked:
    """A stage in a fork; to the caller what `subprocess.Popen` is to a program.

    Attributes:
        pid: of a process that waits for the stage, and leads a session with it.
        stdout: what the stage prints.
        returncode: its exit status; minus the signal if it was killed; None before `wait`.
    """

    returncode: int | None = None

    def __init__(self, stdout: IO[str], status: IO[str]):
        """Read the process's id from `status`, where it writes the exit status later."""
        self.stdout, self._status = stdout, status
        self.pid = int(status.readline() or 0)
        if not self.pid:
            raise RuntimeError("the process that forks for the stages has ended")

    def wait(self) -> int:
        """Wait until the stage has ended, and return its `returncode`."""
        if self.returncode is None:
            with self.stdout, self._status:
                self.returncode = int(self._status.readline() or -signal.SIGKILL)
        return self.returncode


class ForkServer:
    """A process that forks for as long as this one lives."""

    def __init__(self, libraries: Sequence[str] = LIBRARIES):
        """Start it; it imports the libraries while the first request waits."""
        self._control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(its.fileno()), *libraries],
                pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether it can still fork."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it."""
        self._control.close()
        self._process.wait()

    def fork(self, arguments: list[str], errors: IO[bytes], environment: dict[str, str]) -> Forked:
        """Run a stage program in a fork, in the folder that this process is in now.

        Args:
            arguments: of `runner.main`.
            errors: its standard error.
            environment: its environment. (What libraries read on their import is the server's.)
        """
        pipes = [os.pipe(), os.pipe()]
        theirs = [pipes[0][1], errors.fileno(), pipes[1][1]]
        try:
            message = json.dumps([str(Path.cwd()), environment, arguments]).encode()
            socket.send_fds(self._control, [message], theirs)
        finally:
            for _, writing in pipes:
                os.close(writing)
        return Forked(*(os.fdopen(reading) for reading, _ in pipes))


_lock = threading.Lock()
_children = 0
_server: ForkServer | None = None


def fork(arguments: list[str], errors: IO[bytes], environment: dict[str, str]) -> Forked | None:
    """Run a stage program in a fork; None for the first child, which imports what it needs."""
    global _children, _server
    with _lock:
        _children += 1
        if _children == 1 or sys.platform != "linux":
            return None
        if _server and not _server.is_running:
            _server.close()
            _server = None
        _server = _server or ForkServer()
        return _server.fork(arguments, errors, environment)


def serve(control: socket.socket, libraries: Sequence[str]) -> None:
    """Fork for every request, until the other end is closed."""
    gc.disable()  # imports leave hardly any garbage
    for name in libraries:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # so that collections in forks neither scan nor copy what is imported
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for a stage
    while True:
        message, files, *_ = socket.recv_fds(control, _MESSAGE_BYTES, 3)
        if not message:
            return
        if not os.fork():
            control.close()
            _wait_for_fork(*json.loads(message), *files)
        for each in files:
            os.close(each)


def _wait_for_fork(
    folder: str,
    environment: dict[str, str],
    arguments: list[str],
    output: int,
    errors: int,
    status: int,
) -> NoReturn:
    """Fork once more, for the stage, and report how it ends."""
    os.setsid()
    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        os.write(status, f"{os.getpid()}\n".encode())
    except BrokenPipeError:  # whoever asked has died since
        os._exit(1)
    stage = os.fork()
    if stage:
        os.close(output)  # it ends for the reader when the stage ends
        ended = os.waitstatus_to_exitcode(os.waitpid(stage, 0)[1])
        with contextlib.suppress(BrokenPipeError):  # or has died since then
            os.write(status, f"{ended}\n".encode())
        os._exit(0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    for each in (output, errors, status):
        os.close(each)
    end(runner.main(*arguments))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as own:
        serve(own, sys.argv[2:])
    end(0)
