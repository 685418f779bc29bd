"""Make texts for the tiny LLM from any corpus, with chats that teach the prompts' formats.

Input role `corpus`: a corpus.parquet. Writes texts.parquet (kind "text" or "chat", prompt, text),
in the order of training. A passage is learnt as it is; a passage chat asks with its title (without
one, with its first sentence) and shows the text; an answer chat is given the passage too, and
answers with its first sentence. No query of the collection is read.
"""

import re
from collections.abc import Iterator
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from expandr_core.demo.corpus_sample import Passage, sample_passages
from expandr_core.errors import DataError
from expandr_core.generation.prompts import render_prompt
from expandr_core.options import Options, Positive
from expandr_core.runtime.runner import Job
from expandr_core.seeding import derive_seed

VERSION = 1
ROLE = "data"
ISOLATION = "never"
BLOCK = 16  # so many rows of one kind, as they pad well in a batch
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class CollectionTextsOptions(Options):
    """How the texts are mixed."""

    rows: Positive = Field(
        default=22_400, description="Texts to write; passages are used again if needed."
    )
    passage_chats: float = Field(
        default=0.25, ge=0, le=1, description="Share that asks for a passage."
    )
    answer_chats: float = Field(
        default=0.08, ge=0, le=1, description="Share that asks for an answer."
    )
    words: Positive = Field(default=120, description="Passages in chats are cut to so many words.")


OPTIONS = CollectionTextsOptions


def run(job: Job) -> None:
    """Write the texts."""
    options: CollectionTextsOptions = job.options
    random = Random(derive_seed("collection_texts", job.seed))
    passages = sample_passages(job.inputs["corpus"], options.rows, random)
    if not passages:
        raise DataError("the corpus has no passage with text; a tiny LLM needs some to learn from")
    rows = list(make_texts(passages, options, random))
    kinds, prompts, texts = zip(*rows, strict=True)
    table = pa.table({"kind": kinds, "prompt": prompts, "text": texts})
    pq.write_table(table, job.out / "texts.parquet", compression="zstd")
    job.counts |= {"passages": len(passages), "texts": len(rows), "chats": kinds.count("chat")}


def make_texts(
    passages: list[Passage], options: CollectionTextsOptions, random: Random
) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, prompt, text) in blocks of one kind; all passages have their turn."""
    upcoming: list[Passage] = []
    draw = 0.0
    for row in range(options.rows):
        if row % BLOCK == 0:
            draw = random.random()
        if not upcoming:
            upcoming = random.sample(passages, len(passages))
        passage = upcoming.pop()
        if draw < options.passage_chats:
            yield "chat", *passage_chat(passage, options.words)
        elif draw < options.passage_chats + options.answer_chats:
            yield "chat", *answer_chat(passage, options.words)
        else:
            yield "text", "", passage.whole


def passage_chat(passage: Passage, words: int) -> tuple[str, str]:
    """Ask for a passage, and show this one.

    >>> prompt, shown = passage_chat(Passage("Moon dust", "It is grey. It is fine."), words=4)
    >>> "Question: Moon dust" in prompt, shown
    (True, 'It is grey. It')
    """
    text = passage.text or passage.title
    return render_prompt("q2d", _question(passage)), _cut(text, words)


def answer_chat(passage: Passage, words: int) -> tuple[str, str]:
    """Ask with the passage at hand, and answer with its first sentence."""
    prompt = render_prompt("q2a", _question(passage), _cut(passage.whole, words))
    return prompt, _cut(first_sentence(passage.text or passage.title), words)


def first_sentence(text: str) -> str:
    """Return the text up to its first full stop, question or exclamation mark.

    >>> first_sentence("It is grey. It is fine.")
    'It is grey.'
    """
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]


def _question(passage: Passage) -> str:
    return passage.title.strip() or _cut(first_sentence(passage.text), 30)


def _cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])
