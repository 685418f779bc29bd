"""Shared by the commands: messages in the terminal, and settings that must come before all imports."""

import contextlib
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from expandr_cli.interruption import Interruption
from expandr_core.errors import DataError
from expandr_core.store.manifests import DamagedArtifact

for _name, _value in {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin beside another process cost ten times
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # returns memory; mimalloc keeps it
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():  # before anything imports Prefect or transformers; the user's settings win
    os.environ.setdefault(_name, _value)

AGAIN = "The same command continues from what was finished"
ANEW = "The same command plans again; a calibration that did not end starts anew"
RESUME = "`expandr resume` continues it; finished stages are reused from the store"
# what users write is shown as it is: no [markup] or :emoji:; a pipe has no edge to wrap lines at
as_written = partial(Console, markup=False, emoji=False)
out = as_written(width=None if sys.stdout.isatty() else 250)
StoreOption = Annotated[
    str,
    typer.Option(envvar="EXPANDR_STORE", help="Folder or s3:// URL that holds the artifacts."),
]


def absolute(store: str) -> str:
    """Make a relative folder absolute; flows may run elsewhere."""
    return store if "://" in store else str(Path(store).expanduser().absolute())


@contextlib.contextmanager
def user_errors(go_on: str = "") -> Iterator[None]:
    """Turn user errors and interruptions into one clear line without a traceback.

    Args:
        go_on: how to continue an interrupted run.
    """
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(_is_news)
    interruption = Interruption(
        lambda started: notify(f"interrupted. {go_on if started else ''}".strip())
    )
    try:
        with interruption.handled():
            yield
    except BaseException as error:
        if interruption.signal:
            raise SystemExit(interruption.status) from None
        if isinstance(error, DataError):
            fail(str(error))
        if isinstance(error, DamagedArtifact):
            fail(f"damaged: {error}; run its flow again to rebuild it")
        if isinstance(error, OSError | RuntimeError) and not isinstance(error, typer.Exit):
            fail(_described(error))
        raise


def _described(error: OSError | RuntimeError) -> str:
    """Describe an error of the system or of a library; of one about permissions, say what to do."""
    if (
        isinstance(error, OSError)
        and error.filename
        and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    ):
        reason = str(error.strerror).lower()
        return f"{error.filename}: {reason}; correct its permissions, or name another place"
    return f"{type(error).__name__}: {error}"


def _is_news(record: logging.LogRecord) -> bool:
    """Tell whether a line repeats no user's error, which its task's last line tells."""
    raised = record.exc_info and isinstance(record.exc_info[1], DataError)
    of_flow = "Flow run encountered an exception: DataError: " in record.getMessage()
    return not (raised or of_flow)


def printable(text: str) -> str:
    """Return a text of others without what would paint or move in a terminal.

    >>> printable("\x1b[31mred\x07")
    '�[31mred�'
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)


def fail(message: str) -> NoReturn:
    """Exit with status 2 and one line on standard error."""
    notify(f"error: {message}")
    raise typer.Exit(2)


def notify(message: str) -> None:
    """Write one line to standard error."""
    sys.stdout.flush()
    as_written(stderr=True, soft_wrap=True).print(message, highlight=False)
