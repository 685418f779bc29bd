"""Requests that wait are computed together, in one thread: models are used by one thread at a time."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from expandr_core.errors import DataError
from expandr_core.serving.writer import Unwritten

log = logging.getLogger(__name__)
Work = Callable[[Any, Sequence[Any]], Sequence[Any]]


class Refused(Exception):
    """A request that is not answered; `seconds` says when to try it again, 0 that it is in vain."""

    def __init__(self, status: int, reason: str, seconds: int = 0):
        super().__init__(reason)
        self.status, self.reason, self.seconds = status, reason, seconds


@dataclass(eq=False)
class _Waiting:
    work: Work
    models: Any
    item: Any
    answer: asyncio.Future = field(repr=False)


class Batcher:
    """A queue of requests; those that ask the same models for the same work are computed together.

    The oldest request decides which work is next, so none waits for ever. What is in the queue keeps its
    models: after these are replaced, it is still answered by the old ones.
    """

    def __init__(self, most_waiting: int, most_together: int, observe: Callable[[int], None]):
        """Make a queue.

        Args:
            most_waiting: requests that may wait; one more is refused.
            most_together: requests that are computed together.
            observe: is told the size of every batch.
        """
        self.most_waiting, self._most_together = most_waiting, most_together
        self._observe = observe
        self._queue: deque[_Waiting] = deque()
        self._more = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "models")
        self._seconds = 1.0  # that a batch took lately

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    async def submit(self, work: Work, models: Any, item: Any) -> Any:
        """Wait for `work(models, [..., item, ...])`, and return the answer to the item.

        Raises:
            Refused: if too many requests wait.
        """
        if self.waiting >= self.most_waiting:
            batches = self.waiting / self._most_together
            raise Refused(
                429, f"{self.waiting} requests wait already", 1 + int(batches * self._seconds)
            )
        answer = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(work, models, item, answer))
        self._more.set()
        return await answer

    async def in_turn(self, call: Callable[[], Any]) -> Any:
        """Call a function in the thread of the models, after all that waits already, however much."""
        answer = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(_call, call, None, answer))
        self._more.set()
        return await answer

    async def run(self) -> None:
        """Compute what comes in, until this is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                self._more.clear()
                await self._more.wait()
            batch = self._next()
            start = loop.time()
            await loop.run_in_executor(self._thread, _compute, loop, batch)
            self._observe(len(batch))
            self._seconds = 0.8 * self._seconds + 0.2 * (loop.time() - start)
            del batch  # and with it perhaps the last hold of old models

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _next(self) -> list[_Waiting]:
        """Take the oldest request out of the queue, and others like it."""
        oldest = self._queue[0]
        batch: list[_Waiting] = []
        others: deque[_Waiting] = deque()
        for each in self._queue:
            alike = each.work is oldest.work and each.models is oldest.models
            (batch if alike and len(batch) < self._most_together else others).append(each)
        self._queue = others
        return batch


def _compute(loop: asyncio.AbstractEventLoop, batch: list[_Waiting]) -> None:
    """Compute a batch; if it fails because of one of its requests, each by itself."""
    work, models = batch[0].work, batch[0].models
    try:
        answers = work(models, [each.item for each in batch])
    except Exception as error:
        if len(batch) > 1 and not isinstance(error, OSError | RuntimeError | Unwritten):
            for each in batch:
                _compute(loop, [each])
            return
        if isinstance(error, Unwritten):
            log.warning("%s", error)
        elif not isinstance(error, DataError):
            log.exception("a request failed")
        for each in batch:
            loop.call_soon_threadsafe(_settle, each.answer, None, error)
        return
    for each, answer in zip(batch, answers, strict=True):
        loop.call_soon_threadsafe(_settle, each.answer, answer, None)


def _settle(future: asyncio.Future, answer: Any, error: Exception | None) -> None:
    if future.done():  # its client has gone
        return
    if error:
        future.set_exception(error)
    else:
        future.set_result(answer)


def _call(call: Callable[[], Any], items: Sequence[Any]) -> Sequence[Any]:
    return [call()]
