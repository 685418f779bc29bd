"""Show what a stage is doing: a progress artifact in Prefect, a bar in the terminal, log lines."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from threading import get_ident
from typing import Any

import httpx
from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from rich.theme import Theme

from expandr_core.runtime.child_protocol import throttled
from expandr_core.runtime.job import Progress as Report

ARTIFACT_SECONDS = 2.0
LOG_SECONDS = 30.0


class _ToPrefect(logging.Handler):
    """Pass log lines of the core on to the logger of the task whose thread wrote them.

    Lines of threads that a stage has started go to the task that began last.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.run_loggers: dict[int, Any] = {}
        self.before: tuple[int, bool] = logging.NOTSET, True

    def emit(self, record: logging.LogRecord) -> None:
        loggers = dict(self.run_loggers)
        logger = loggers.get(record.thread or 0) or next(reversed(loggers.values()), None)
        if logger:
            logger.log(record.levelno, "%s", record.getMessage())


_to_prefect = _ToPrefect()
_attaching = threading.Lock()


@contextlib.contextmanager
def core_logs() -> Iterator[None]:
    """Show the log lines of `expandr_core` in Prefect, under the running task."""
    core, loggers, thread = logging.getLogger("expandr_core"), _to_prefect.run_loggers, get_ident()
    with _attaching:
        if not loggers:
            _to_prefect.before = core.level, core.propagate
            core.addHandler(_to_prefect)
            core.setLevel(logging.INFO)
            core.propagate = False
        loggers[thread] = get_run_logger()
    try:
        yield
    finally:
        with _attaching:
            del loggers[thread]
            if not loggers:
                core.removeHandler(_to_prefect)
                level, core.propagate = _to_prefect.before
                core.setLevel(level)


@contextlib.contextmanager
def only_shown(what: str) -> Iterator[None]:
    """Let no work end because Prefect's server, which would only show something of it, is away."""
    try:
        yield
    except httpx.HTTPError as error:
        get_run_logger().warning("Prefect cannot show %s: %s", what, error or type(error).__name__)


@contextlib.contextmanager
def progress(title: str, step: str = "") -> Iterator[Report]:
    """Yield a function that shows (done, total, unit) wherever somebody may be looking.

    Args:
        title: of the stage.
        step: which step of the run it is, such as "step 3 of 40".
    """
    reports = [throttled(_artifact(title), ARTIFACT_SECONDS)]
    with contextlib.ExitStack() as stack:
        if sys.stderr.isatty():
            reports.append(stack.enter_context(_bar(title, step)))
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


class _Display(Progress):
    """One line about the run, and below it one bar for each stage that runs now.

    It writes to the console of Prefect's log lines, which then stand above it and not within it.
    """

    def __init__(self, console: Console) -> None:
        self.headline, self.since = "", time.monotonic()
        title = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        super().__init__(
            TextColumn("{task.description}", markup=False, table_column=title),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[amount]}", markup=False, table_column=Column(no_wrap=True)),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            expand=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """Draw the line about the run above the bars."""
        if self.headline:
            elapsed = timedelta(seconds=int(time.monotonic() - self.since))
            yield Text(f"{self.headline}, {elapsed} since the start", style="dim", no_wrap=True)
        yield self.make_tasks_table(self.tasks)


_display: _Display | None = None  # a terminal has room for one
_drawing = threading.Lock()


@contextlib.contextmanager
def _bar(title: str, step: str) -> Iterator[Report]:
    """Show a bar as long as the stage runs."""
    global _display
    with _drawing:
        if _display is None:
            _display = _Display(_console())
        display = _display
        display.headline = step
        if not display.tasks:
            display.start()
        task = display.add_task(title, total=None, amount="")

    def report(done: int, total: int, unit: str) -> None:
        amount = f"{done:,}/{total:,} {unit}"
        display.update(task, completed=done, total=total, amount=amount)

    try:
        yield report
    finally:
        with _drawing:
            display.remove_task(task)
            if not display.tasks:
                display.stop()


def _console() -> Console:
    """Return the console that Prefect writes log lines to; a new one if it writes none."""
    handlers = logging.getLogger().handlers
    consoles = [each.console for each in handlers if isinstance(each, PrefectConsoleHandler)]
    console = consoles[0] if consoles else Console(stderr=True)
    console.push_theme(Theme())  # Prefect's own has no colours for a bar
    return console
