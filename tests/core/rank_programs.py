"""Programs that the tests launch in several processes, each of which imports this module."""

from typing import Any

import psutil

from expandr_core.runtime.job import Progress


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes that a process has launched: forks of one that waits to fork."""
    return [
        fork
        for server in process.children(recursive=True)
        if any("forkserver" in argument for argument in server.cmdline())
        for fork in server.children()
    ]


def train_all(tasks: list[Any], device: str, report: Progress) -> list[Any]:
    """Train one task after the other."""
    from expandr_core.training.retriever import train

    return [train(task, device, report) for task in tasks]


def align_all(tasks: list[Any], device: str, report: Progress) -> list[Any]:
    """Train one adapter after the other; return the logs."""
    from expandr_core.training.alignment import train

    return [train(task, device, report) for task in tasks]


def fail(where: int, message: str, device: str, report: Progress) -> None:
    """Fail in one process while the others wait for it."""
    import torch

    from expandr_core.training.distributed import gather, rank

    if rank() == where:
        raise ValueError(message)
    gather(torch.zeros(1), 2)


def refuse(message: str, device: str, report: Progress) -> None:
    """Find the input at fault, in every process."""
    from expandr_core.errors import DataError

    raise DataError(message)


def put_together(
    sizes: list[int], device: str, report: Progress
) -> list[tuple[list[float], list[float]]]:
    """Gather rows of numbers, and sum a gradient that only the first process has."""
    import torch

    from expandr_core.training.distributed import gather, rank, shares, sum_gradients

    results = []
    for size in sizes:
        rows = torch.arange(float(size))[:, None]
        weight = torch.nn.Parameter(torch.zeros(2))
        weight.grad = torch.tensor([1.0, 2.0]) if rank() == 0 else None
        sum_gradients([weight])
        together = gather(rows[shares(size)[rank()]], size)
        assert weight.grad is not None
        results.append((together[:, 0].tolist(), weight.grad.tolist()))
    return results
