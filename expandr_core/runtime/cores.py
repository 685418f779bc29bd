"""Threads that share the cores of a CPU, or that keep a device busy each."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")
_TURNS = 6
_FEWEST = 64  # items of a core


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


def shares_of(count: int, device: str = "cpu") -> list[slice]:
    """Cut items, such as queries, into a share for each core of a CPU; a GPU works on all."""
    import torch

    cores = torch.get_num_threads() if device == "cpu" else 1
    size = max(_FEWEST, math.ceil(count / cores))
    return [slice(start, start + size) for start in range(0, count, size)]


def work_on_all(work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """Work on all parts at the same time, in threads that share the cores."""
    if len(parts) == 1:
        return [work(parts[0])]
    with sharing_cores(len(parts)) as pool:
        return list(pool.map(work, parts))


def least_seconds(*calls: Callable[[], object]) -> list[float]:
    """Return the least time of each call in one thread, after one that prepares.

    Threads that wait for each other would measure what else the processor does. The calls take turns, so
    that what it does beside them slows all of them down.
    """
    import torch

    seconds: list[list[float]] = [[] for _ in calls]
    with sharing_cores(torch.get_num_threads()):
        for _ in range(1 + _TURNS):
            for call, own in zip(calls, seconds, strict=True):
                started = time.perf_counter()
                call()
                own.append(time.perf_counter() - started)
    return [min(own[1:]) for own in seconds]
