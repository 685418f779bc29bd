"""Make texts for the tiny LLM from any corpus, with chats that teach the format of the prompts.

Input role `corpus`: a corpus.parquet. Writes texts.parquet (kind "text" or "chat", prompt, text), in the
order of training. A plain text is a passage. A passage chat asks with a passage's title (if it has none,
with its first sentence) and shows its text; an answer chat also gives the passage in the prompt, and
answers with its first sentence. No query of the collection is read.
"""

import re
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.demo.corpus_sample import sample_passages
from expandr_core.demo.mixing import BLOCK, BLOCKS, Text, mix, turns
from expandr_core.errors import DataError
from expandr_core.generation.prompts import render_prompt
from expandr_core.options.base import Options
from expandr_core.records import Passage
from expandr_core.runtime.job import Job
from expandr_core.seeding import derive_seed

VERSION = 2
ROLE = "data"
ISOLATION = "never"
OPTIONS = Options
TEXTS = "texts.parquet"
FILES = (TEXTS,)  # that other steps refer to by name
LONGEST = 120  # words of a passage in a chat
LONGEST_QUESTION = 30
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def run(job: Job) -> None:
    """Write the texts."""
    random = Random(derive_seed("collection_texts", job.seed))
    passages = sample_passages(job.inputs["corpus"], BLOCKS * BLOCK, random)
    if not passages:
        raise DataError("the corpus has no passage with text; a tiny LLM needs some to learn from")
    upcoming = turns(passages, random)
    texts = list(
        mix(
            random,
            text=lambda: Text("text", "", next(upcoming).content),
            passage_chat=lambda: passage_chat(next(upcoming)),
            answer_chat=lambda: answer_chat(next(upcoming)),
        )
    )
    columns = dict(zip(Text._fields, map(list, zip(*texts, strict=True)), strict=True))
    pq.write_table(pa.table(columns), job.out / TEXTS, compression="zstd")
    chats = columns["kind"].count("chat")
    job.counts |= {"passages": len(passages), "texts": len(texts), "chats": chats}


def passage_chat(passage: Passage) -> Text:
    """Ask for a passage, and show this one.

    >>> passage_chat(Passage("p1", "Moon dust", "It is grey. It is fine.")).text
    'It is grey. It is fine.'
    """
    shown = _cut(passage.text or passage.title, LONGEST)
    return Text("chat", render_prompt("q2d", _question(passage)), shown)


def answer_chat(passage: Passage) -> Text:
    """Ask with the passage in the prompt, and answer with its first sentence."""
    prompt = render_prompt("q2a", _question(passage), _cut(passage.content, LONGEST))
    return Text("chat", prompt, _cut(first_sentence(passage.text or passage.title), LONGEST))


def first_sentence(text: str) -> str:
    """Return the text up to its first full stop, question or exclamation mark.

    >>> first_sentence("It is grey. It is fine.")
    'It is grey.'
    """
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]


def _question(passage: Passage) -> str:
    return passage.title.strip() or _cut(first_sentence(passage.text), LONGEST_QUESTION)


def _cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])
