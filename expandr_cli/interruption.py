"""Interrupt a command: by Ctrl-C, SIGTERM, or closing the terminal.

The first signal raises KeyboardInterrupt: Prefect marks the run as crashed, stages terminate their
processes, the command kills what is left and exits with 128 + the signal's number. If that takes
GRACE_SECONDS, or at the second signal, it marks the run, kills its processes and exits at once.
"""

import contextlib
import contextvars
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

TEMPORARY_SERVER = "expandr_cli.temporary_server"  # its keeper would start it again
GRACE_SECONDS = 15.0  # a stage's processes have 5 to exit by themselves, then they are killed
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEFAULT = (signal.SIG_DFL, signal.default_int_handler)  # other handlers stay, such as nohup's


class Interruption:
    """Whether the command is interrupted, and by which signal.

    Attributes:
        signal: the first signal; 0 before it.
    """

    def __init__(self, announce: Callable[[bool], None]):
        """Prepare for signals.

        Args:
            announce: called once, at the end of an interrupted command; its argument tells whether a
                run had started.
        """
        self.signal = 0
        self._announce = announce
        self._second_signal, self._announced = threading.Event(), threading.Lock()
        self._context = contextvars.copy_context()
        self._over = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals inside the block; after an interrupted block too, until the command exits."""
        former = {number: signal.getsignal(number) for number in _SIGNALS}
        ours = [number for number, handler in former.items() if handler in _DEFAULT]
        for number in ours:
            signal.signal(number, self._on_signal)
        try:
            yield
        except BaseException as error:
            if self.signal:
                by_prefect = type(error.__context__).__name__ == "TerminationSignal"
                self._finish(by_prefect)  # Prefect re-raises SIGTERM once it has marked the run
                kill_children()  # what nobody has ended, such as one that was just being started
            else:
                _restore(former, ours)
            raise
        self._over = True  # a later signal has nothing to interrupt
        _restore(former, ours)

    @property
    def status(self) -> int:
        """Exit status of the command."""
        return 128 + self.signal

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal:
            self._second_signal.set()
            return
        self.signal = number
        self._context = contextvars.copy_context()  # it knows the run and its server
        threading.Thread(target=self._kill_after_grace, daemon=True).start()
        raise KeyboardInterrupt

    def _kill_after_grace(self) -> None:
        self._second_signal.wait(GRACE_SECONDS)
        if self._over:
            return
        self._finish()
        with contextlib.suppress(Exception):
            kill_children()
        os._exit(self.status)

    def _finish(self, started: bool = False) -> None:
        """Mark the run as crashed and announce the end, each once."""
        started = started or self._context.copy().run(run_id) is not None
        with contextlib.suppress(Exception):
            self._context.copy().run(mark_as_crashed)
        if self._announced.acquire(blocking=False):
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._announce(started)


def _restore(handlers: dict[signal.Signals, Any], ours: list[signal.Signals]) -> None:
    for number in ours:
        signal.signal(number, handlers[number])


def run_id() -> UUID | None:
    """Return the id of this context's flow run; Prefect marks runs outside of it by itself."""
    flow_run_context = getattr(sys.modules.get("prefect.context"), "FlowRunContext", None)
    context = flow_run_context.get() if flow_run_context else None
    return context.flow_run.id if context and context.flow_run else None


def mark_as_crashed() -> None:
    """Mark this context's flow run as crashed in Prefect, unless it is already final."""
    flow_run_id = run_id()
    if flow_run_id is None:
        return
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
    from prefect.states import Crashed

    quick = get_client(httpx_settings={"timeout": 3}, sync_client=True)
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), quick as client:
        state = client.read_flow_run(flow_run_id).state
        if state is None or not state.is_final():
            message = "the command was interrupted"
            client.set_flow_run_state(flow_run_id, Crashed(message=message), force=True)


def kill_children() -> None:
    """Kill every descendant of this process but Prefect's temporary server, which ends with it."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if TEMPORARY_SERVER not in process.cmdline():
                process.kill()
