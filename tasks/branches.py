"""Independent branches of a flow, each a Prefect task in a thread; if one fails, the others stop.

A branch stops where it waits for a pool or when its stage next reports progress: its stage's process
ends, while runs on a pool go on, as when a flow dies, and the next run of the flow finds them. Stages in
the flow's own process take turns, because two could exceed its memory.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE


class Stopped(RuntimeError):
    """Another branch of the flow has failed, or the flow is being ended."""


class _Stop:
    """Whether the branches of a flow are to stop, and why."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def set(self, error: BaseException) -> None:
        """Stop all branches; the first error is the reason."""
        self.error = self.error or error


_STOP: ContextVar[_Stop | None] = ContextVar("stop", default=None)
_IN_THIS_PROCESS = threading.Lock()


@contextlib.contextmanager
def branches() -> Iterator[None]:
    """Let branches begin; raise the error of the one that failed first."""
    stop = _Stop()
    token = _STOP.set(stop)
    try:
        yield
    except Stopped:
        assert stop.error is not None
        raise stop.error from None
    except BaseException as error:
        stop.set(error)
        raise
    finally:
        _STOP.reset(token)


def stop_if_asked() -> None:
    """Leave a branch if another one has failed.

    Raises:
        Stopped: if so.
    """
    stop = _STOP.get()
    if stop and stop.error:
        raise Stopped("another branch of the flow has failed, or the flow is being ended")


@contextlib.contextmanager
def turn_in_this_process() -> Iterator[None]:
    """Wait until no other branch runs a stage in this process."""
    while not _IN_THIS_PROCESS.acquire(timeout=1):
        stop_if_asked()
    try:
        yield
    finally:
        _IN_THIS_PROCESS.release()


@task(name="branch", task_run_name="{title}", cache_policy=NO_CACHE, persist_result=False)
def run_branch(title: str, steps: Callable[[], Any]) -> Any:
    """Run the steps of a branch."""
    try:
        return steps()
    except BaseException as error:
        stop = _STOP.get()
        if stop and not isinstance(error, Stopped):
            stop.set(error)
        raise
