"""Tokenise blocks of texts, for a GPU in threads and ahead of the model.

A GPU would wait for its texts: one thread tokenises 0.4 million tokens a second, and an H100 encodes
three times as many. Threads suffice: tokenizers release Python's lock for three quarters of their time.
"""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Literal

from sentence_transformers import SentenceTransformer
from torch import Tensor

from expandr_core.encoders.sentence_transformer import PROMPT_NAMES

Kind = Literal["query", "document"]  # as in encode_query and encode_document
Features = dict[str, Any]
_THREADS = 4  # more would wait for Python's lock


def tokenise(model: SentenceTransformer, texts: list[str], kind: Kind) -> Features:
    """Tokenise texts after the model's prompt for their kind."""
    return model.preprocess(texts, prompt=prompt_of(model, kind), task=kind)


def prompt_of(model: SentenceTransformer, kind: Kind) -> str | None:
    """Return the model's prompt for a kind of text.

    sentence-transformers gives every model empty prompts "query" and "document", and its
    `encode_document` uses the latter even if "passage" is set; here an empty prompt never hides another.
    """
    return next((text for name in PROMPT_NAMES[kind] if (text := model.prompts.get(name))), None)


def twin_of(model: SentenceTransformer) -> SentenceTransformer:
    """Copy a model, tokenizer included, but for its weights, which both share."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


@contextmanager
def tokenised_ahead(
    model: SentenceTransformer, blocks: Sequence[list[str]], kind: Kind
) -> Iterator[list[Future[Features]]]:
    """Tokenise blocks of texts in threads, in their order; what is not needed any more is left out."""
    free = SimpleQueue[SentenceTransformer]()  # a tokenizer serves one thread at a time
    for _ in range(min(_THREADS, len(blocks))):
        free.put(twin_of(model))

    def run(texts: list[str]) -> Features:
        own = free.get()
        try:
            return tokenise(own, texts, kind)
        finally:
            free.put(own)

    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield [pool.submit(run, texts) for texts in blocks]
    finally:
        pool.shutdown(cancel_futures=True)


def widen(used: Tensor) -> None:
    """Use more columns, beside those in use, so that their number is one of few.

    It becomes a multiple of an eighth of the power of two below it, or of 8, if there are so many.

    Args:
        used: (columns,) whether a text has a token there.
    """
    width = int(used.sum())
    step = max(8, 2 ** (width.bit_length() - 4))
    more = -width % step
    free = (~used).nonzero()[:, 0]
    used[free[:more] if used[0] else free[max(0, len(free) - more) :]] = True
