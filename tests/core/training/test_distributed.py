"""Processes that train together: what they share, and how they fail."""

import signal
from collections.abc import Iterator

import psutil
import pytest
import rank_programs as programs

from expandr_core.errors import DataError
from expandr_core.training.distributed import launch


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Give back the signal handlers that the launcher replaces."""
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(name) for name in names]
    yield
    for name, handler in zip(names, before, strict=True):
        signal.signal(name, handler)


def test_shares_of_unequal_size_are_put_together_in_order_and_gradients_summed():
    sizes = [5, 1, 4]  # of 1 row, the second process has none
    found = launch(programs.put_together, 2, sizes)
    assert found == [(list(map(float, range(size))), [1.0, 2.0]) for size in sizes]


def test_the_message_of_the_process_that_failed_first_is_reported():
    with pytest.raises(RuntimeError, match=r"process 1 failed: ValueError: the reason"):
        launch(programs.fail, 2, 1, "the reason")
    left = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    assert not [line for line in left if any("spawn_main" in part for part in line)]


def test_input_at_fault_is_told_from_other_errors():
    with pytest.raises(DataError, match=r"^line 3: no query: add one$"):
        launch(programs.refuse, 2, "line 3: no query: add one")
