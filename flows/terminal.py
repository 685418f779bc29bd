"""What the commands share: messages in the terminal, and settings that must come before everything."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from expandr_core.errors import DataError

for _name, _value in {
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin beside another process cost ten times
    "ARROW_DEFAULT_MEMORY_POOL": "system",  # gives memory back; mimalloc keeps it
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}.items():  # before anything imports Prefect or transformers; what the user has set stays
    os.environ.setdefault(_name, _value)

out = Console()
StoreOption = Annotated[
    str,
    typer.Option(envvar="EXPANDR_STORE", help="Folder or s3:// URL that keeps every artifact."),
]


def absolute(store: str) -> str:
    """Make a relative folder absolute; flows may run elsewhere."""
    return store if "://" in store else str(Path(store).expanduser().absolute())


class complaints:
    """End with one clear line where the input is at fault, instead of a traceback."""

    def __enter__(self) -> None:
        for name in ("prefect.task_runs", "prefect.flow_runs"):
            logging.getLogger(name).addFilter(_without_traceback)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DataError):
            fail(str(error))
        if isinstance(error, OSError | RuntimeError):
            fail(f"{type(error).__name__}: {error}")


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], DataError):
        record.exc_info = None
        record.exc_text = None
    return True


def fail(message: str) -> NoReturn:
    """End with one line on standard error, and status 2."""
    sys.stdout.flush()
    Console(stderr=True, soft_wrap=True).print(f"error: {message}", markup=False, highlight=False)
    raise typer.Exit(2)
