"""What answers requests now, and how it is replaced while they come in."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from expandr_core.serving.batching import Batcher, Refused
from expandr_core.serving.metrics import Metrics
from expandr_core.serving.opened import Opened

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """What one request, and all that wait, may ask for.

    Attributes:
        query_characters: of a query.
        passages: to find.
        texts: to encode in one request, each as long as a query may be.
        waiting: requests; one more is refused.
        together: requests that are computed together.
        body_bytes: of a request.
    """

    query_characters: int = 2000
    passages: int = 100
    texts: int = 64
    waiting: int = 1000
    together: int = 64
    body_bytes: int = 1_000_000

    def check(self, texts: Sequence[str], passages: int = 1) -> None:
        """Refuse what is over a limit.

        Raises:
            Refused: with status 422.
        """
        longest = max(map(len, texts), default=0)
        for what, found, most in (
            ("characters in a text", longest, self.query_characters),
            ("passages (k)", passages, self.passages),
            ("texts", len(texts), self.texts),
        ):
            if found > most:
                raise Refused(422, f"at most {most:,} {what}, not {found:,}")


class Server:
    """The models that answer, their queue and their metrics.

    Attributes:
        opened: the models that new requests get.
        stopping: whether the server ends.
    """

    def __init__(
        self,
        opened: Opened,
        limits: Limits,
        newest: Callable[[Opened], Opened | None],
        poll_seconds: float,
    ):
        """Serve models.

        Args:
            opened: the models, loaded.
            limits: of requests.
            newest: returns what is to be served instead of some models, or None.
            poll_seconds: how often it is asked.
        """
        self.opened, self.limits = opened, limits
        self.metrics = Metrics()
        self.metrics.serve(opened.served)
        self.batcher = Batcher(limits.waiting, limits.together, self.metrics.together.observe)
        self.metrics.waiting.set_function(lambda: self.batcher.waiting)
        self._newest, self._poll_seconds = newest, poll_seconds
        self.stopping = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer requests and look for new models, until the block ends."""
        tasks = [asyncio.create_task(self.batcher.run()), asyncio.create_task(self._watch())]
        try:
            yield
        finally:
            self.stopping = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.batcher.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self.exchange()
            except Exception as error:  # whatever it is, the old models go on
                self.metrics.exchanges.labels("failed").inc()
                log.warning("still serving %s: %s", self.opened.served.run, error)

    async def exchange(self) -> None:
        """Look for new models, and serve them.

        They are loaded beside the old ones, the language model in the thread of the models: loading one
        changes torch's default type for a moment, which nothing else may notice.
        """
        new = await asyncio.to_thread(self._newest, self.opened)
        if new is None:
            return
        await asyncio.to_thread(new.load)
        if new.writer:
            await self.batcher.in_turn(new.writer.load)
        old, self.opened = self.opened, new
        self.metrics.serve(new.served)
        self.metrics.exchanges.labels("served").inc()
        log.info("serving run %s", new.served.run)
        held = new.served.artifacts().values()
        released = [each for each in old.served.artifacts().values() if each not in held]
        store = old.store
        del old
        await self.batcher.in_turn(gc.collect)  # after the last request that the old ones answer
        for each in released:
            store.release(each)
