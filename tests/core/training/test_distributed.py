"""Processes that train together: what they exchange, and how they fail."""

import psutil
import pytest
import rank_programs as programs

from expandr_core.errors import DataError
from expandr_core.training.distributed import launch


def test_shares_of_unequal_size_are_put_together_in_order_and_gradients_summed():
    sizes = [5, 1, 4]  # of 1 row, the second process has none
    results = launch(programs.put_together, 2, "cpu", sizes)
    assert results == [(list(map(float, range(size))), [1.0, 2.0]) for size in sizes]


def test_the_message_of_the_process_that_failed_first_is_reported():
    with pytest.raises(RuntimeError, match=r"process 1 failed: ValueError: the reason"):
        launch(programs.fail, 2, "cpu", 1, "the reason")
    assert not programs.ranks_of(psutil.Process())


def test_input_at_fault_is_told_from_other_errors():
    with pytest.raises(DataError, match=r"^line 3: no query: add one$"):
        launch(programs.refuse, 2, "cpu", "line 3: no query: add one")
