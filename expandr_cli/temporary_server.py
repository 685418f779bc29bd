"""A Prefect server for the duration of one command, if PREFECT_API_URL is not set.

Prefect would start one too, but in the terminal's process group: Ctrl-C kills it before the run can be
marked, it outlives a killed command, and once it is dead every call fails for minutes. Ours runs in a
session of its own and dies with its command. The command holds the socket, so if the server dies, a new
one answers at the same address, and Prefect's client only has to retry.

    python -m expandr_cli.temporary_server SOCKET PARENT
"""

import atexit
import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from expandr_cli.interruption import TEMPORARY_SERVER
from expandr_core.errors import DataError
from expandr_core.runtime.child_protocol import die_with_parent
from expandr_core.store.filesystems import flock

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.settings.context import SettingKey

Result = TypeVar("Result")
STARTS = 4  # a server that has died so often would die again
START_SECONDS = 300.0  # until it answers; it may have to migrate an old database first
RECORDING = {  # what becomes of tasks is written down together, with about half of the server's work
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",  # seconds; a fraction is cut off
}


class TemporaryServer:
    """A server on a free port that this process keeps alive until it exits."""

    def __init__(self, environment: dict[str, str], warn: Callable[[str], None]):
        """Start a server, and wait until it answers.

        Args:
            environment: of the server.
            warn: shows the user a message.

        Raises:
            DataError: if it does not start.
        """
        self._environment, self._warn = environment, warn
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/api"
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._answers = self._over = False
        self.process: subprocess.Popen | None = None
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        with _starting_alone(environment):
            self._keeper.start()
            atexit.register(self.stop)  # after Prefect's threads have sent their events
            self._wait()

    def _keep(self) -> None:
        """Restart the server whenever it dies; it dies with the thread that starts it."""
        for start in range(STARTS):
            self.process = self._start()
            status = self.process.wait()
            if self._over or not self._answers:
                break
            if start + 1 < STARTS:
                self._warn(f"Prefect's temporary server died (status {status}); restarting it")
        if not self._over:
            self._socket.close()  # clients are refused at once
            if self._answers:
                self._warn(
                    f"Prefect's temporary server died {STARTS} times, so Prefect will not show how "
                    "this run ends; its results still go to the store"
                )

    def _start(self) -> subprocess.Popen:
        number = self._socket.fileno()
        return subprocess.Popen(
            [sys.executable, "-m", TEMPORARY_SERVER, str(number), str(os.getpid())],
            env=self._environment,
            pass_fds=[number],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            start_new_session=True,
        )

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self._keeper.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    self._answers = True
                    return
        self.stop()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        raise DataError(
            f"Prefect's temporary server does not start ({named[-1] if named else 'no answer'}); its "
            "database is in PREFECT_HOME (default: ~/.prefect), which may be full, damaged or "
            "read-only. Set PREFECT_HOME to another folder, or PREFECT_API_URL to a running server"
        )

    def stop(self) -> None:
        """Terminate the server; kill it if it does not exit."""
        self._over = True
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def _starting_alone(environment: dict[str, str]) -> Iterator[None]:
    """Wait for servers that start on the same database: two that migrate it at once would fail."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # of a folder that is not writable the server complains
            home = Path(environment.get("PREFECT_HOME") or "~/.prefect").expanduser()
            stack.enter_context(flock(home / "expandr-start.lock"))
        yield


@contextlib.contextmanager
def prefect_server(warn: Callable[[str], None]) -> Iterator[None]:
    """Provide flows with a server: the one in PREFECT_API_URL, or a temporary one if that is not set.

    Raises:
        DataError: if there is none.
    """
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        PREFECT_UI_URL,
        get_current_settings,
        temporary_settings,
    )

    from deployments.connection import asked_of, connected

    if PREFECT_API_URL.value():
        with connected():
            yield
        return
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    environment = {**RECORDING, **os.environ, **settings, "PREFECT_UI_ENABLED": "0"}
    server = TemporaryServer(environment, warn)
    use: dict[SettingKey, Any] = {
        PREFECT_API_URL: server.url,
        PREFECT_UI_URL: "",
        PREFECT_CLIENT_MAX_RETRIES: 3,
    }
    try:
        with temporary_settings(use):
            yield
    except httpx.HTTPError as error:
        if not asked_of(server.url, error):
            raise
        raise DataError(
            f"Prefect's temporary server failed during the run ({error or type(error).__name__}). "
            "Finished stages are in the store: `expandr runs` lists the runs, `expandr resume` continues"
        ) from error


def run_flow(flow: "Flow[..., Result]", **parameters: Any) -> Result:
    """Run a flow; retry if a busy server answers 409 when the run is created.

    Nothing of the flow has run then. A server with SQLite does so under load.
    """
    for _ in range(STARTS - 1):
        try:
            return flow(**parameters)  # pyrefly: ignore[bad-return]
        except httpx.HTTPStatusError as error:
            path = error.request.url.path
            if error.response.status_code != 409 or not path.endswith(("/flows/", "/flow_runs/")):
                raise
    return flow(**parameters)  # pyrefly: ignore[bad-return]


def serve(number: int, parent: int) -> None:
    """Serve Prefect's API on an open socket as long as the parent lives."""
    die_with_parent()
    if os.getppid() != parent:  # the parent died before that
        return
    import uvicorn
    from prefect.server.api.server import create_app

    listening = socket.socket(fileno=number)
    app = create_app(ephemeral=True, final=True)
    config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
