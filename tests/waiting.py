"""Waiting for what comes soon on a machine at rest, and later on a busy one."""

import time
from collections.abc import Callable

SECONDS = 300  # after which it will not come


def wait_until(is_so: Callable[[], object], what: str = "what was waited for") -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)
