"""Measure what the processor can do at most: memory bandwidth, and matrix products by type.

    python -m benchmarks.limits

The distances to the limit in docs/performance.md are relative to these numbers of the same machine.
"""

import time
from collections.abc import Callable

import torch

from benchmarks.side_by_side import machine

SIZE = 4096  # of square matrices
GIGABYTE = 1 << 30
REPEATS = 5


def best(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several calls, after one to warm up."""
    work()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    """Print the bandwidth in GB/s, and the products in GFLOP/s."""
    print(machine())
    memory = torch.ones(GIGABYTE // 4)
    print(f"reads {memory.nbytes / best(memory.sum) / 1e9:.1f} GB/s")
    del memory
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(SIZE, SIZE, dtype=dtype), torch.ones(SIZE, SIZE, dtype=dtype)
        rate = 2 * SIZE**3 / best(lambda left=left, right=right: left @ right)
        print(f"{str(dtype).removeprefix('torch.')} products {rate / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
