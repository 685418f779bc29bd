"""How a stage program talks to its parent: log lines, progress and the result, one JSON event a line."""

import atexit
import ctypes
import json
import logging
import os
import signal
import sys
import time
from typing import Any, NoReturn

from expandr_core.runtime.job import Progress


def emit(**event: Any) -> None:
    """Print an event to the process's original standard output, even after `sys.stdout` was replaced.

    If nobody reads it, the parent has died, and this process ends, too.
    """
    try:
        print(json.dumps(event, allow_nan=False) + "\n", end="", file=sys.__stdout__, flush=True)
    except BrokenPipeError:
        os._exit(1)


class _JSONLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        emit(log=record.getMessage(), level=record.levelno, logger=record.name)


def report_events() -> Progress:
    """Print log lines as events from now on; return a function that prints progress events."""
    core = logging.getLogger("expandr_core")
    core.setLevel(logging.INFO)
    core.addHandler(_JSONLines())
    core.propagate = False
    sys.stdout = sys.stderr  # a library's print must not corrupt the events
    return throttled(lambda *done: emit(progress=done), 0.5)


def throttled(progress: Progress, seconds: float) -> Progress:
    """Pass on the first and the last report, and at most one per interval in between."""
    last = -seconds

    def report(done: int, total: int, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= seconds:
            last = now
            progress(done, total, unit)

    return report


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, for whatever reason."""
    if sys.platform == "linux":  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def end(status: int) -> NoReturn:
    """End this process after what is registered for its exit; freeing every object takes seconds."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        stream.flush()  # pyrefly: ignore[missing-attribute]
    os._exit(status)
