"""What the tests let several processes do; imported in each, so it imports little."""

from typing import Any


def train_all(tasks: list[Any]) -> list[dict[str, float]]:
    """Train one task after the other."""
    from expandr_core.stages.train_retriever import train
    from expandr_core.training.distributed import joined

    with joined("cpu") as (device, report):
        return [train(task, device, report) for task in tasks]


def fail(where: int, message: str) -> None:
    """Fail in one process while the others wait for it."""
    import torch

    from expandr_core.training.distributed import gather, joined, rank

    with joined("cpu"):
        if rank() == where:
            raise ValueError(message)
        gather(torch.zeros(1), 2)


def refuse(message: str) -> None:
    """Find the input at fault, in every process."""
    from expandr_core.errors import DataError
    from expandr_core.training.distributed import joined

    with joined("cpu"):
        raise DataError(message)


def put_together(sizes: list[int]) -> list[tuple[list[float], list[float]]]:
    """Gather rows of numbers, and sum a gradient that only the first process has."""
    import torch

    from expandr_core.training.distributed import gather, joined, rank, shares, sum_gradients

    found = []
    with joined("cpu"):
        for size in sizes:
            rows = torch.arange(float(size))[:, None]
            weight = torch.nn.Parameter(torch.zeros(2))
            weight.grad = torch.tensor([1.0, 2.0]) if rank() == 0 else None
            sum_gradients([weight])
            together = gather(rows[shares(size)[rank()]], size)
            assert weight.grad is not None
            found.append((together[:, 0].tolist(), weight.grad.tolist()))
    return found
