"""The mix of texts that a tiny LLM learns from: plain texts, and chats that show the prompts.

The texts come in blocks of one kind, so that a batch of the same size needs little padding. The kinds
alternate from the start: a model that has read nothing but plain texts for long learns the chats badly.
"""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Literal, NamedTuple, TypeVar

Item = TypeVar("Item")
BLOCK = 16
BLOCKS = 1400
PASSAGE_CHATS = 0.25  # share of the blocks
ANSWER_CHATS = 0.08


class Text(NamedTuple):
    """One text: to read ("text"), or to write in answer to a prompt ("chat")."""

    kind: Literal["text", "chat"]
    prompt: str
    text: str


def mix(
    random: Random,
    *,
    text: Callable[[], Text],
    passage_chat: Callable[[], Text],
    answer_chat: Callable[[], Text],
) -> Iterator[Text]:
    """Yield `BLOCKS` blocks of `BLOCK` texts, each block from one of three writers drawn at random."""
    for _ in range(BLOCKS):
        draw = random.random()
        if draw < PASSAGE_CHATS:
            write = passage_chat
        elif draw < PASSAGE_CHATS + ANSWER_CHATS:
            write = answer_chat
        else:
            write = text
        for _ in range(BLOCK):
            yield write()


def turns(items: Sequence[Item], random: Random) -> Iterator[Item]:
    """Yield the items forever: all of them in random order, then all again in another order.

    >>> upcoming = turns("abc", Random(0))
    >>> [sorted(next(upcoming) for _ in "abc") for _ in range(2)]
    [['a', 'b', 'c'], ['a', 'b', 'c']]
    """
    while True:
        yield from reversed(random.sample(items, len(items)))
