"""Threads share the cores; what is measured is measured in one."""

import torch

from expandr_core.generation.precision import bfloat16_is_quicker
from expandr_core.runtime.cores import least_seconds


def test_calls_are_measured_by_turns_in_one_thread_and_others_compute_in_as_many_as_before():
    """Threads that wait for each other take long beside other work."""
    threads, seen = torch.get_num_threads(), list[tuple[str, int]]()

    def call(name: str) -> None:
        seen.append((name, torch.get_num_threads()))

    try:
        torch.set_num_threads(3)
        seconds = least_seconds(lambda: call("one"), lambda: call("other"))
        assert len(seconds) == 2 and min(seconds) > 0
        assert seen == [("one", 1), ("other", 1)] * (len(seen) // 2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_the_precision_to_write_in_is_measured_in_one_thread(monkeypatch):
    threads, seen, multiply = torch.get_num_threads(), set[int](), torch.mm

    def counted(*sides: torch.Tensor) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        return multiply(*sides)

    monkeypatch.setattr(torch, "mm", counted)
    try:
        torch.set_num_threads(3)
        bfloat16_is_quicker.__wrapped__(64)
        assert seen == {1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
