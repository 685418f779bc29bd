"""Threads that share the cores of a CPU, or that keep a device busy each."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


@contextlib.contextmanager
def sharing_cores(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Open a pool of threads, in each of which torch computes with its share of the cores."""
    import torch

    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    try:
        torch.set_num_threads(share)  # as a thread that waits for another one's share spins
        with ThreadPoolExecutor(workers, "cores", torch.set_num_threads, (share,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # the number that was set last counts for later threads


def work_on_all(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Work on all parts at the same time, in threads that share the cores."""
    if len(parts) == 1:
        return [work(parts[0])]
    with sharing_cores(len(parts)) as pool:
        return list(pool.map(work, parts))
