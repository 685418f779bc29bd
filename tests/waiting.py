"""Waiting for what comes soon on a machine at rest, and later on a busy one."""

import time
from collections.abc import Callable

SECONDS = 300  # after which it will not come


def wait_until(is_so: Callable[[], object], what: str = "what was waited for") -> None:
    """Wait until something is so; a look that takes long is repeated later, but within a second."""
    asked = time.monotonic()
    deadline = asked + SECONDS
    while not is_so():
        looked = time.monotonic()
        assert looked < deadline, f"{what} did not come"
        time.sleep(min(max(0.02, 4 * (looked - asked)), 1))
        asked = time.monotonic()
