"""Several processes that train one model on one machine: torchrun's ranks, without its command line.

Each rank is a process with a number; `torch.distributed` joins them, by NCCL on GPUs and by gloo on
CPUs. They die with the process that started them, also if that is killed.
"""

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from expandr_core.errors import DataError
from expandr_core.runtime.child_protocol import die_with_parent, report_events
from expandr_core.runtime.device import run_device
from expandr_core.runtime.job import Progress, no_progress

Result = TypeVar("Result")
PATIENCE = timedelta(hours=1)  # a rank waits so long for the others, such as for one that measures


def launch(program: Callable[..., Result], processes: int, *arguments: Any) -> Result:
    """Run `program(*arguments)` in several processes; return what the first one returns.

    Args:
        program: a function of a module; it is called in every process, and uses `joined` there.
        processes: how many.
        arguments: what can be pickled.

    Raises:
        DataError: if the program found its input at fault.
        RuntimeError: if a process failed, with its error message, or was killed.
    """
    with tempfile.TemporaryDirectory(prefix="expandr-ranks-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            return elastic_launch(config, program)(*arguments)[0]
        except ChildFailedError as error:
            raise _first_error(Path(folder), error) from None


def _first_error(folder: Path, error: ChildFailedError) -> Exception:
    """Return what failed first: the others fail as well, for want of it."""
    files = sorted(folder.rglob("error.json"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        rank, failure = error.get_first_failure()
        return RuntimeError(f"process {rank} failed: {failure.message}")
    report = json.loads(files[0].read_text())["message"]
    name, _, message = report["message"].partition(": ")
    if name == DataError.__name__:
        return DataError(message)
    trace = report["extraInfo"]["py_callstack"]
    return RuntimeError(f"process {files[0].parent.name} failed: {name}: {message}\n{trace}")


@contextmanager
def joined(device: str) -> Iterator[tuple[str, Progress]]:
    """Join this process, which `launch` started, with the others for a while.

    Args:
        device: "cpu", "cuda" or "auto" for a GPU where there is one.

    Yields:
        The device of this process, and what reports progress: only the first process's says it.

    Raises:
        DataError: if there are more processes than GPUs.
    """
    die_with_parent()
    starter = multiprocessing.parent_process()
    if starter is not None and os.getppid() != starter.pid:  # it died before that
        sys.exit("the process that started this one is gone")
    on_gpu = run_device(device) != "cpu"
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    report = no_progress if rank() else report_events()
    processes, gpus = dist.get_world_size(), torch.cuda.device_count()
    if not on_gpu:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    elif processes > gpus:
        raise DataError(f"`processes` is {processes}, and this machine has {gpus} GPUs; lower it")
    else:
        torch.cuda.set_device(rank())
    yield f"cuda:{rank()}" if on_gpu else "cpu", report
    dist.destroy_process_group()  # not after an error, which is told before the others notice


def rank() -> int:
    """Return the number of this process among those that train together, 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def shares(total: int) -> list[slice]:
    """Cut so many rows into a consecutive share for each process; the first ones get one more.

    >>> shares(5)
    [slice(0, 5, None)]
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    ends = np.cumsum([len(part) for part in np.array_split(np.arange(total), processes)])
    return [slice(int(start), int(end)) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def gather(rows: Tensor, total: int) -> Tensor:
    """Put together the shares of all processes.

    Args:
        rows: (rows of this process's share, ...)
        total: rows of all shares.

    Returns:
        (total, ...), the same in every process.
    """
    if not dist.is_initialized():
        return rows
    sizes = [share.stop - share.start for share in shares(total)]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of each process by their sum over all processes."""
    if not dist.is_initialized():
        return
    trained = [each for each in parameters if each.requires_grad]
    for each in trained:
        if each.grad is None:  # of a process without a row
            each.grad = torch.zeros_like(each)
    flat = nn.utils.parameters_to_vector([each.grad for each in trained])  # pyright: ignore
    dist.all_reduce(flat)
    nn.utils.vector_to_parameters(flat, [each.grad for each in trained])  # pyright: ignore
