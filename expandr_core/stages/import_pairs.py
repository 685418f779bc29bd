"""Import preference pairs that exist: the paper's release, TRL's layouts, or our own export.

Input: `llm`, whose tokenizer tells which texts were cut. Writes pairs.parquet as the stage `pairs` does,
in the order of the files, the training pairs first; pairs that we have exported are again sorted by
query_id. A user's turn in the wording of the prompt gives its query. Of any other turn the column
`prompt_text` says that training takes it as it is. Rewards and similarities are null, unless the pair
brings them.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.data.formats.pairs import GivenPair, pairs_files, read_pairs, splits_of
from expandr_core.data.formats.triples import text_id
from expandr_core.data.rows import RawFile, Reader
from expandr_core.errors import DataError
from expandr_core.generation.chat_templates import load_tokenizer
from expandr_core.generation.control_tokens import encode_text
from expandr_core.generation.prompts import render_prompt
from expandr_core.options.base import Options, runtime
from expandr_core.options.generation import Prompt, PromptOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.preferences.pairs import RETRIEVAL, pairs_schema, split_of
from expandr_core.records import PROMPT_TEXT
from expandr_core.runtime.job import Job

log = logging.getLogger(__name__)
VERSION = 1
ROLE = "data"
ISOLATION = "never"
CUT = 512  # tokens at which the paper's generation cut a text
_QUERY = "\ue000"  # stands for the query when the wording is turned into a pattern


class ImportPairsOptions(Options):
    """Where the pairs are, the prompt that they were written for, and how many are held out."""

    location: str = runtime("")
    prompt: PromptOptions
    dpo_dev_share: float
    bad_rows: Literal["refuse", "skip"] = "refuse"

    @classmethod
    def of(cls, options: JointLoopOptions) -> Self:
        """Import the pairs of the loop."""
        return cls(
            location=options.data.pairs,
            prompt=options.expand.prompt,
            dpo_dev_share=options.preferences.dpo_dev_share,
            bad_rows=options.data.bad_rows,
        )


OPTIONS = ImportPairsOptions


def source_digests(options: ImportPairsOptions) -> dict[str, str]:
    """Return the SHA-256 of every file that the stage will read, by name."""
    return {file.name: file.sha256() for file in pairs_files(options.location)}


def run(job: Job) -> None:
    """Write `pairs.parquet`; count what is dropped by reason."""
    options: ImportPairsOptions = job.options
    reader = Reader(options.bad_rows, job.counts, job.spec.sources)
    files = pairs_files(options.location)
    rows = list(_rows(job, reader, files))
    if not rows:
        raise DataError(f"{options.location}: no pair is left; dropped by reason: {job.counts}")
    # what our export numbers is sorted as it was; all else stays in order, the training pairs first
    rows.sort(key=lambda row: row.pop("order"))
    as_they_are = any(row["prompt_text"] is not None for row in rows)
    schema = pairs_schema(any(f"query_{RETRIEVAL}" in row for row in rows))
    if as_they_are:
        schema = schema.append(PROMPT_TEXT)
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, job.out / "pairs.parquet", compression="zstd")
    splits = Counter(row["split"] for row in rows)
    job.counts |= {
        "accepted": len(rows),
        "pairs": len(rows),
        "train": splits["train"],
        "queries": len({row["query_id"] for row in rows}),
        "texts cut": sum(
            row[f"{side}_finish_reason"] == "length"
            for row in rows
            for side in ("chosen", "rejected")
        ),
        "turns kept as they are": sum(row["prompt_text"] is not None for row in rows),
    }
    log.info("%d pairs of %d queries", len(rows), job.counts["queries"])


def _rows(job: Job, reader: Reader, files: list[RawFile]) -> Iterator[dict[str, Any]]:
    """Yield the pairs that something can be learned from, as rows of pairs.parquet."""
    options: ImportPairsOptions = job.options
    tokenizer = load_tokenizer(job.inputs["llm"])
    wording, splits = pattern_of(options.prompt), splits_of(files)
    seen: set[tuple[str, ...]] = set()
    for file in files:
        for pair in read_pairs(reader, file):
            content = (pair.own.query_id if pair.own else "", *pair[:3])
            if reason := _unusable(pair) or ("repeated" if content in seen else ""):
                reader.count(f"dropped/{file.name}/{reason}")
                continue
            seen.add(content)
            row = row_of(pair, wording, tokenizer)
            if not pair.own:
                draw = split_of(row["query_id"], job.seed, options.dpo_dev_share)
                row["split"] = splits.get(file.name, draw)
            row["order"] = (content[0], not pair.own and row["split"] == "dev")
            yield row
            job.progress(len(seen), len(seen), "pairs")


def _unusable(pair: GivenPair) -> str:
    """Say why nothing can be learned from a pair; empty if something can."""
    if not (pair.turn.strip() and pair.chosen and pair.rejected):
        return "empty text"
    return "chosen equals rejected" if pair.chosen == pair.rejected else ""


def pattern_of(prompt: Prompt | PromptOptions) -> re.Pattern[str]:
    r"""Return the pattern of a whole turn in a prompt's wording; its first group is the query.

    >>> turn = "Please write a passage to answer the question.\nQuestion: Why?\nHow?\nPassage:"
    >>> pattern_of("q2d").fullmatch(turn)[1]
    'Why?\nHow?'
    """
    first, *others = map(re.escape, render_prompt(prompt, _QUERY).split(_QUERY))
    return re.compile(first + "(.*)" + r"\1".join(others), re.DOTALL)


def row_of(pair: GivenPair, wording: re.Pattern[str], tokenizer: Any) -> dict[str, Any]:
    """Return a pair as a row of pairs.parquet; what it does not say is missing."""
    worded = wording.fullmatch(pair.turn)
    query = worded[1] if worded else pair.turn
    row: dict[str, Any] = {
        "query_id": text_id(query),
        "query": query,
        "prompt_text": None if worded else pair.turn,
    }
    if pair.own:
        row |= pair.own.model_dump(include={"query_id", "split", "margin"}) | pair.own.measured
    for side in ("chosen", "rejected"):
        text = row[f"{side}_text"] = getattr(pair, side)
        if pair.own:
            said = getattr(pair.own, side).model_dump()
            row |= {f"{side}_{name}": value for name, value in said.items()}
        else:
            cut = len(encode_text(tokenizer, text)) >= CUT
            row[f"{side}_finish_reason"] = "length" if cut else "stop"
    return row
