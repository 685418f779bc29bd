"""What the commands share: messages in the terminal, and settings that must come before everything."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from expandr_cli.ending import Ending
from expandr_core.errors import DataError
from expandr_core.store.manifests import DamagedArtifact

for _name, _value in {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin beside another process cost ten times
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # gives memory back; mimalloc keeps it
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():  # before anything imports Prefect or transformers; what the user has set stays
    os.environ.setdefault(_name, _value)

out = Console(width=None if sys.stdout.isatty() else 250)  # a pipe has no edge to wrap lines at
StoreOption = Annotated[
    str,
    typer.Option(envvar="EXPANDR_STORE", help="Folder or s3:// URL that holds the artifacts."),
]


def absolute(store: str) -> str:
    """Make a relative folder absolute; flows may run elsewhere."""
    return store if "://" in store else str(Path(store).expanduser().absolute())


@contextlib.contextmanager
def complaints(go_on: str = "") -> Iterator[None]:
    """End with one clear line where the input is at fault, or the command is ended; no traceback.

    Args:
        go_on: what to say of how to go on after Ctrl-C.
    """
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(_without_traceback)
    ending = Ending(lambda begun: say(f"interrupted. {go_on if begun else ''}".strip()))
    try:
        with ending.watched():
            yield
    except BaseException as error:
        if ending.signal:
            raise SystemExit(ending.status) from None
        if isinstance(error, DataError):
            fail(str(error))
        if isinstance(error, DamagedArtifact):
            fail(f"damaged: {error}; the run that made it makes it again")
        if isinstance(error, OSError | RuntimeError) and not isinstance(error, typer.Exit):
            fail(f"{type(error).__name__}: {error}")
        raise


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], DataError):
        record.exc_info = None
        record.exc_text = None
    return True


def fail(message: str) -> NoReturn:
    """End with one line on standard error, and status 2."""
    say(f"error: {message}")
    raise typer.Exit(2)


def say(message: str) -> None:
    """Write one line to standard error."""
    sys.stdout.flush()
    Console(stderr=True, soft_wrap=True).print(message, markup=False, highlight=False)
