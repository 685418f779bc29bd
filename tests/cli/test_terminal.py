"""What is said in a terminal: texts of others as text, errors in one line, and who promotes."""

import errno
import io
import logging
import os
import platform

import pytest
import typer
from prefect import flow, task
from rich.console import Console

from expandr_cli.explain import _say
from expandr_cli.models import _actor
from expandr_cli.terminal import user_errors
from expandr_core.errors import DataError


def test_a_text_neither_paints_the_terminal_nor_names_its_window():
    console = Console(file=io.StringIO(), width=80)
    _say(console, "a prompt", "\x1b[31mred\x1b]0;title\x07", "gr\u00fcn\t\u4e2d")
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "\x1b" not in shown and "\x07" not in shown
    assert "[31mred" in shown and "gr\u00fcn" in shown and "\u4e2d" in shown


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_an_error_about_permissions_says_where_and_what_to_do(capsys, code):
    with pytest.raises(typer.Exit), user_errors():
        raise OSError(code, os.strerror(code), "/data/store/locks")
    said = (
        f"error: /data/store/locks: {os.strerror(code).lower()}; correct its permissions, or name"
    )
    assert said in capsys.readouterr().err


def test_a_user_who_has_a_number_only_can_promote(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 424_242)
    assert _actor() == f"424242@{platform.node()}"


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


@pytest.mark.usefixtures("prefect_server")
def test_a_users_error_is_told_by_its_task_and_at_the_end(capsys):
    @task
    def read() -> None:
        raise DataError("corpus.jsonl:5: not valid JSON")

    @flow
    def loop() -> None:
        read()

    kept = Kept()
    loggers = [logging.getLogger(name) for name in ("prefect.task_runs", "prefect.flow_runs")]
    for logger in loggers:
        logger.addHandler(kept)
    try:
        with pytest.raises(typer.Exit), user_errors():
            loop()
    finally:
        for logger in loggers:
            logger.removeHandler(kept)
    told = [line for line in kept.said if "corpus.jsonl:5" in line]
    assert len(told) == 1 and "Traceback" not in told[0]
    assert "error: corpus.jsonl:5: not valid JSON" in capsys.readouterr().err
