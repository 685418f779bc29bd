"""How a command ends before its time: by Ctrl-C, SIGTERM, or a terminal that was closed.

The first signal raises KeyboardInterrupt: Prefect marks the run as crashed, stages end their processes,
and the command ends with 128 + the signal's number. What does not end by itself within seconds, or until
the second signal, is ended all the same, once the run is marked.
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

PATIENCE = 15.0  # seconds; a stage's processes have 5 to end politely, then they are killed
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OWN = (signal.SIG_DFL, signal.default_int_handler)  # what was set otherwise stays, as by nohup


class Ending:
    """Whether the command is being ended, and by what.

    Attributes:
        signal: the first signal that came; 0 if none has.
    """

    def __init__(self, last_words: Callable[[bool], None]):
        """Say the last words in the end, once; they are told whether a run had begun."""
        self.signal = 0
        self._last_words = last_words
        self._hurry, self._said = threading.Event(), threading.Lock()
        self._context = contextvars.copy_context()
        self._dismissed = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Listen to the signals; also afterwards, if one has ended what was done meanwhile."""
        former = {number: signal.getsignal(number) for number in _SIGNALS}
        ours = [number for number, handler in former.items() if handler in _OWN]
        for number in ours:
            signal.signal(number, self._on_signal)
        try:
            yield
        except BaseException as error:
            if self.signal:
                of_prefect = type(error.__context__).__name__ == "TerminationSignal"
                self._finish(of_prefect)  # which passes SIGTERM on once it has marked the run
            else:
                _restore(former, ours)
            raise
        self._dismissed = True  # a signal that came too late to end anything
        _restore(former, ours)

    @property
    def status(self) -> int:
        """What the command ends with."""
        return 128 + self.signal

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.signal:
            self._hurry.set()
            return
        self.signal = number
        self._context = contextvars.copy_context()  # where the run and its server are known
        threading.Thread(target=self._end_hard, daemon=True).start()
        raise KeyboardInterrupt

    def _end_hard(self) -> None:
        self._hurry.wait(PATIENCE)
        if self._dismissed:
            return
        self._finish()
        with contextlib.suppress(Exception):
            kill_children()
        os._exit(self.status)

    def _finish(self, begun: bool = False) -> None:
        """Mark the run, unless it is marked, and say the last words, unless they have been said."""
        begun = begun or self._context.copy().run(run_id) is not None
        with contextlib.suppress(Exception):
            self._context.copy().run(mark_as_crashed)
        if self._said.acquire(blocking=False):
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._last_words(begun)


def _restore(handlers: dict[signal.Signals, Any], ours: list[signal.Signals]) -> None:
    for number in ours:
        signal.signal(number, handlers[number])


def run_id() -> UUID | None:
    """Return the id of this context's run; Prefect itself marks one that only begins or ends."""
    known = getattr(sys.modules.get("prefect.context"), "FlowRunContext", None)
    context = known.get() if known else None
    return context.flow_run.id if context and context.flow_run else None


def mark_as_crashed() -> None:
    """Tell Prefect that the run of this context is over, if there is one and it does not know."""
    own_id = run_id()
    if own_id is None:
        return
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
    from prefect.states import Crashed

    own = get_client(httpx_settings={"timeout": 3}, sync_client=True)
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), own as client:
        state = client.read_flow_run(own_id).state
        if state is None or not state.is_final():
            message = "the command was interrupted"
            client.set_flow_run_state(own_id, Crashed(message=message), force=True)


def kill_children() -> None:
    """Kill all that this process has started, and what that has started."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()
