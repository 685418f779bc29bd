"""What a stage program tells who started it: log lines, progress and results, one JSON event a line."""

import ctypes
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

Progress = Callable[[int, int, str], None]


def say(**event: Any) -> None:
    """Print one event on standard output, whatever `sys.stdout` is by now."""
    sys.__stdout__.write(json.dumps(event, allow_nan=False) + "\n")  # pyright: ignore[reportOptionalMemberAccess]
    sys.__stdout__.flush()  # pyright: ignore[reportOptionalMemberAccess]


class _JSONLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(log=record.getMessage(), level=record.levelno, logger=record.name)


def report_events() -> Progress:
    """Print log lines as events from now on; return what prints progress so."""
    core = logging.getLogger("expandr_core")
    core.setLevel(logging.INFO)
    core.addHandler(_JSONLines())
    core.propagate = False
    sys.stdout = sys.stderr  # libraries that print must not disturb the events
    return throttled(lambda *done: say(progress=done), 0.5)


def throttled(progress: Progress, seconds: float) -> Progress:
    """Pass on the first and last report, and between them one per interval."""
    last = -seconds

    def report(done: int, total: int, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= seconds:
            last = now
            progress(done, total, unit)

    return report


class Beginning:
    """Pass progress on, and note when it begins.

    Attributes:
        seconds: from making this until a report that nothing is done yet, but all is prepared; None
            if there was none, or the work went on from a checkpoint.
    """

    def __init__(self, progress: Progress):
        """Pass on to `progress`."""
        self.progress, self.made = progress, time.monotonic()
        self.seconds: float | None = None

    def __call__(self, done: int, total: int, unit: str) -> None:
        """Report."""
        if not done and self.seconds is None:
            self.seconds = round(time.monotonic() - self.made, 2)
        self.progress(done, total, unit)


def die_with_parent() -> None:
    """Let this process be killed when the one that started it ends, however that ends."""
    if sys.platform == "linux":  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
