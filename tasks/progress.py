"""Show what a stage is doing: a progress artifact in Prefect, a bar in the terminal, log lines."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from expandr_core.runtime.child_protocol import throttled
from expandr_core.runtime.job import Progress as Report

ARTIFACT_SECONDS = 2.0
LOG_SECONDS = 30.0


class _ToPrefect(logging.Handler):
    """Pass log lines of the core on to the logger of the running task."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.run_logger = get_run_logger()

    def emit(self, record: logging.LogRecord) -> None:
        self.run_logger.log(record.levelno, "%s", record.getMessage())


@contextlib.contextmanager
def core_logs() -> Iterator[None]:
    """Show the log lines of `expandr_core` in Prefect, under the running task."""
    core, handler = logging.getLogger("expandr_core"), _ToPrefect()
    level, propagate = core.level, core.propagate
    core.setLevel(logging.INFO)
    core.propagate = False
    core.addHandler(handler)
    try:
        yield
    finally:
        core.removeHandler(handler)
        core.setLevel(level)
        core.propagate = propagate


@contextlib.contextmanager
def only_shown(what: str) -> Iterator[None]:
    """Let no work end because Prefect's server, which would only show something of it, is away."""
    try:
        yield
    except httpx.HTTPError as error:
        get_run_logger().warning("Prefect cannot show %s: %s", what, error or type(error).__name__)


@contextlib.contextmanager
def progress(title: str) -> Iterator[Report]:
    """Yield a function that shows (done, total, unit) wherever somebody may be looking."""
    reports = [throttled(_artifact(title), ARTIFACT_SECONDS)]
    with contextlib.ExitStack() as stack:
        if sys.stderr.isatty():
            reports.append(stack.enter_context(_bar(title)))
        else:
            reports.append(throttled(_log_line(title), LOG_SECONDS))

        def report(done: int, total: int, unit: str) -> None:
            for each in reports:
                each(done, total, unit)

        yield report


def _artifact(title: str) -> Report:
    artifact_id: Any = None
    away = False

    def report(done: int, total: int, unit: str) -> None:
        nonlocal artifact_id, away
        if away:
            return
        percent = 100.0 * done / max(total, 1)
        with only_shown(f"the progress of {title}"):
            if artifact_id is None:
                text = f"{title}: {total:,} {unit}"
                artifact_id = create_progress_artifact(progress=percent, description=text)
            else:
                update_progress_artifact(artifact_id, progress=percent)
            return
        away = True  # each further try would take the patience of Prefect's client

    return report


def _log_line(title: str) -> Report:
    logger, started = get_run_logger(), time.monotonic()

    def report(done: int, total: int, unit: str) -> None:
        if done < total and time.monotonic() - started >= LOG_SECONDS:
            logger.info("%s: %s of %s %s", title, f"{done:,}", f"{total:,}", unit)

    return report


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(
        *columns, TextColumn("{task.fields[unit]}"), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(title, total=None, unit="")

        def report(done: int, total: int, unit: str) -> None:
            bar.update(task, completed=done, total=total, unit=unit)

        yield report
