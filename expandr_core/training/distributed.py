"""Several processes that train one model on one machine: torchrun's ranks, without its command line.

Each process has a rank; `torch.distributed` connects them, by NCCL on GPUs and by gloo on CPUs, where
they are forks of one that has imported what they need. They die with the process that launched them.
"""

import json
import multiprocessing
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from expandr_core.errors import DataError
from expandr_core.runtime.child_protocol import die_with_parent, report_events
from expandr_core.runtime.device import run_device
from expandr_core.runtime.fork_server import LIBRARIES
from expandr_core.runtime.job import Progress, no_progress

Result = TypeVar("Result")
TIMEOUT = timedelta(hours=1)  # for which a rank waits for the others, such as for one that measures


def launch(program: Callable[..., Result], processes: int, device: str, *arguments: Any) -> Result:
    """Run `program(*arguments, device, report)` in a group of processes; return the first one's result.

    Args:
        program: a function of a module; see `process_group` for its last two arguments.
        processes: size of the group.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        arguments: picklable.

    Raises:
        DataError: if the program raised one, or there are more processes than GPUs.
        RuntimeError: if a process failed, with its error message, or was killed.
    """
    multiprocessing.set_forkserver_preload([*LIBRARIES, __name__])
    with tempfile.TemporaryDirectory(prefix="expandr-ranks-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=Path(folder).name,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            start_method="forkserver" if run_device(device) == "cpu" else "spawn",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            return elastic_launch(config, _run)(program, device, arguments)[0]
        except ChildFailedError as error:
            raise _first_error(Path(folder), error) from None


def _run(program: Callable[..., Result], device: str, arguments: tuple[Any, ...]) -> Result:
    with process_group(device) as (own_device, report):
        return program(*arguments, own_device, report)


def _first_error(folder: Path, error: ChildFailedError) -> Exception:
    """Return the error of the process that failed first: the others fail because they miss it."""
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
def process_group(device: str) -> Iterator[tuple[str, Progress]]:
    """Connect this process, which `launch` started, with the others for the duration of the context.

    Args:
        device: "cpu", "cuda", or "auto" for a GPU if there is one.

    Yields:
        The device of this process, and a function that reports progress if this is the first process.

    Raises:
        DataError: if there are more processes than GPUs.
    """
    die_with_parent()
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    on_gpu = run_device(device) != "cpu"
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    report = no_progress if rank() else report_events()
    processes, gpus = dist.get_world_size(), torch.cuda.device_count()
    if not on_gpu:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    elif processes > gpus:
        raise DataError(f"`processes` is {processes}, and this machine has {gpus} GPUs; lower it")
    else:
        torch.cuda.set_device(rank())
    yield f"cuda:{rank()}" if on_gpu else "cpu", report
    dist.destroy_process_group()  # not after an error: it must be reported before the others notice


def _end_with_launcher() -> None:
    """Wait for the end of the process that launched this one, which need not be its parent."""
    if launcher := multiprocessing.parent_process():
        launcher.join()
        signal.raise_signal(signal.SIGKILL)


def rank() -> int:
    """Return the number of this process within the group, 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def shares(total: int) -> list[slice]:
    """Divide rows into one consecutive share per process; the first ones get one row more.

    >>> shares(5)
    [slice(0, 5, None)]
    """
    processes = dist.get_world_size() if dist.is_initialized() else 1
    size, rest = divmod(total, processes)
    ends = [size * (number + 1) + min(number + 1, rest) for number in range(processes)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def gather(rows: Tensor, total: int) -> Tensor:
    """Concatenate the shares of all processes.

    Args:
        rows: (rows of this process's share, ...)
        total: number of rows in all shares.

    Returns:
        (total, ...), the same in every process.
    """
    if not dist.is_initialized():
        return rows
    sizes = [share.stop - share.start for share in shares(total)]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
    return torch.cat([share[:size] for share, size in zip(gathered, sizes, strict=True)])


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of each process by their sum over all processes."""
    if not dist.is_initialized():
        return
    trained = [weight for weight in parameters if weight.requires_grad]
    for weight in trained:
        if weight.grad is None:  # in a process without a row
            weight.grad = torch.zeros_like(weight)
    gradients: list[Any] = [weight.grad for weight in trained]
    flat = nn.utils.parameters_to_vector(gradients)
    dist.all_reduce(flat)
    nn.utils.vector_to_parameters(flat, gradients)
