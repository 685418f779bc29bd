"""Flows, and the command that runs them."""

import sys
from typing import Any


def _without_interrupts(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Show no traceback of Ctrl-C while a command is still being imported."""
    if kind is not KeyboardInterrupt:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _without_interrupts
