"""Requests that wait are computed together, in order, each by the models that it came for."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from expandr_core.errors import DataError
from expandr_core.serving.batching import Batcher, Refused

Batches = list[tuple[str, list[int]]]


class Held:
    """Work that notes its batches, and begins when it may."""

    def __init__(self) -> None:
        self.batches: Batches = []
        self.may = threading.Event()

    def double(self, models: str, items: Sequence[int]) -> list[int]:
        self.may.wait(300)
        self.batches.append((models, list(items)))
        if 13 in items:
            raise DataError("13 cannot be doubled")
        if 500 in items:
            raise RuntimeError("the language model's server is down")
        return [2 * each for each in items]


def batched(
    use: Callable[[Batcher, Callable[[str, int], Awaitable[int]], Held], Awaitable[Any]],
    most_waiting: int = 100,
) -> tuple[Any, Batches]:
    """Run a use of a batcher that computes at most four requests together."""

    async def main() -> tuple[Any, Batches]:
        held, sizes = Held(), []
        batcher, work = Batcher(most_waiting, 4, sizes.append), held.double
        running = asyncio.create_task(batcher.run())
        try:
            found = await use(
                batcher, lambda models, item: batcher.submit(work, models, item), held
            )
        finally:
            held.may.set()
            running.cancel()
            batcher.close()
        assert len(sizes) <= len(held.batches) + 1
        return found, held.batches

    return asyncio.run(main())


async def begun(batcher: Batcher, *asked: Awaitable[int]) -> list[asyncio.Task]:
    """Let requests be in the queue, but the first, which is being computed."""
    tasks = []
    for each in asked:
        tasks.append(asyncio.ensure_future(each))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return tasks


def test_what_waits_meanwhile_is_computed_together():
    async def use(batcher, ask, held):
        tasks = await begun(batcher, *(ask("a", n) for n in range(8)))
        held.may.set()
        return await asyncio.gather(*tasks)

    found, batches = batched(use)
    assert found == [0, 2, 4, 6, 8, 10, 12, 14]
    assert batches == [("a", [0]), ("a", [1, 2, 3, 4]), ("a", [5, 6, 7])]


def test_each_is_answered_by_the_models_that_it_came_for_and_then_they_are_let_go():
    async def use(batcher, ask, held):
        asked = (ask(models, n) for n, models in enumerate("aabab"))
        tasks = await begun(batcher, *asked)
        last = asyncio.ensure_future(batcher.in_turn(lambda: list(held.batches)))
        held.may.set()
        await asyncio.gather(*tasks)
        return await last

    seen, batches = batched(use)
    assert batches == [("a", [0]), ("a", [1, 3]), ("b", [2, 4])]
    assert seen == batches  # it came after all of them


def test_a_request_that_cannot_be_answered_leaves_the_others_their_answers():
    async def use(batcher, ask, held):
        tasks = await begun(batcher, ask("a", 0), ask("a", 12), ask("a", 13), ask("a", 14))
        held.may.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found, batches = batched(use)
    assert [found[0], found[1], found[3]] == [0, 24, 28] and isinstance(found[2], DataError)
    assert batches[2:] == [("a", [12]), ("a", [13]), ("a", [14])]


def test_trouble_that_all_share_is_not_looked_for_again_in_each():
    async def use(batcher, ask, held):
        tasks = await begun(batcher, ask("a", 0), ask("a", 500), ask("a", 1))
        held.may.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found, batches = batched(use)
    assert found[0] == 0 and all(isinstance(each, RuntimeError) for each in found[1:])
    assert len(batches) == 2


def test_more_than_may_wait_are_refused_with_when_to_come_again():
    async def use(batcher, ask, held):
        tasks = await begun(batcher, ask("a", 0), ask("a", 1), ask("a", 2))
        with pytest.raises(Refused, match="2 requests wait") as refused:
            await ask("a", 3)
        held.may.set()
        return await asyncio.gather(*tasks), refused.value

    (found, refused), _ = batched(use, most_waiting=2)
    assert found == [0, 2, 4]
    assert refused.status == 429 and refused.seconds >= 1
