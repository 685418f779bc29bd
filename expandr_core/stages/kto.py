"""KTO: raise the likelihood of desirable candidates and lower the others' (Ethayarajh et al., 2024).

Input roles are those of the stage dpo, and `rewards`, from which `pairs` were chosen. Every candidate is
a row, so nothing of a query is thrown away:

    desirable      its reward is at least the median of its query's, and the query was accepted
    undesirable    all others

The accepted queries are those of the pairs, and the dev rows those of the dev pairs. A query that was
accepted and has no pair teaches nothing (its candidates are equal), or was left out of
`preferences.max_pairs`; of the queries that were not accepted the same share is kept.

Each row brings an unrelated text, a candidate of the query before in a seeded order, for the reference
point of KTO.
"""

import logging
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pyarrow.parquet as pq

from expandr_core.errors import DataError
from expandr_core.generation.chat_templates import load_tokenizer
from expandr_core.generation.pair_tokens import completion_ids
from expandr_core.options.base import Options
from expandr_core.options.generation import ChatOptions, PromptOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.training import KTOTrainingOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.preferences.pairs import ROUNDING, choose_pair
from expandr_core.runtime.job import Job
from expandr_core.seeding import derive_seed, unit_interval
from expandr_core.training.alignment_stage import (
    Rows,
    prepare_training,
    rows_to_train,
    token_limits,
    train_adapter,
    write_log,
)

if TYPE_CHECKING:
    from expandr_core.training.alignment import AlignmentTask

log = logging.getLogger(__name__)
VERSION = 1
ROLE = "train"
ISOLATION = "always"
MEASURES = ("loss", "kl", "rewards/chosen", "rewards/rejected", "rewards/margins")
ON_DEV = ("loss", "kl", "rewards/margins")


class KTOOptions(Options):
    """How to train, and the prompt that the texts were written for."""

    training: KTOTrainingOptions = KTOTrainingOptions()
    prompt: PromptOptions = PromptOptions()
    chat: ChatOptions = ChatOptions()

    @classmethod
    def of(cls, options: JointLoopOptions, chat: ChatOptions) -> Self:
        """Align the language model of the loop."""
        training = KTOTrainingOptions(
            **options.dpo.shared(),
            beta=options.dpo.beta,
            desirable_weight=options.align.desirable_weight,
            undesirable_weight=options.align.undesirable_weight,
        )
        return cls(training=training, prompt=options.expand.prompt, chat=chat)


OPTIONS = KTOOptions


class Judged(NamedTuple):
    """The candidates of a query, and which of them are desirable."""

    query_id: str
    query: str
    split: str
    texts: list[tuple[str, str]]  # each with its finish reason
    desirable: list[bool]


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the texts to train on, and those to measure on, each as often as that happens."""
    options: KTOOptions = step.options
    return rows_to_train(step.counts, options.training, "texts")


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict the candidates of all pairs, and the same share of those that were not accepted."""
    pairs, rewards = (step.inputs[role].counts for role in ("pairs", "rewards"))
    each = rewards["candidates"] / max(rewards["queries"], 1)
    others = (pairs["queries"] - pairs["accepted"]) * pairs["pairs"] / max(pairs["accepted"], 1)
    return {
        "train_texts": round((pairs["train"] + others) * each),
        "dev_texts": round((pairs["pairs"] - pairs["train"]) * each),
    }


def run(job: Job) -> None:
    """Train an adapter of `llm` on the candidates; write it, and `training_log.json`."""
    write_log(job, train_adapter(job, prepare(job)), MEASURES, ON_DEV)
    log.info("KTO on %d texts: %d steps", job.counts["train_texts"], job.counts["steps"])


def prepare(job: Job) -> "AlignmentTask":
    """Tokenise the candidates, and find the checkpoint to resume from.

    Raises:
        DataError: if the processes cannot share a step evenly or one text at a time, if no text is left
            for training, if all are of one query, or if a prompt leaves no room for a text.
    """
    options: KTOOptions = job.options
    training = options.training
    if min(training.device_batch_size, training.batch_size // training.processes) < 2:
        raise DataError(
            "KTO needs two texts at a time: raise dpo.device_batch_size, or dpo.batch_size "
            f"({training.batch_size}) to twice dpo.processes ({training.processes})"
        )
    return prepare_training(job, "kto", training, "texts", token_rows)


def token_rows(job: Job) -> Rows:
    """Tokenise every candidate, with a label and an unrelated text."""
    options: KTOOptions = job.options
    tokenizer = load_tokenizer(job.inputs["llm"], options.chat)
    limits = token_limits(options.prompt, options.training)
    queries = sorted(judged(job), key=lambda each: derive_seed("kto", job.seed, each.query_id))
    if len(queries) < 2:
        raise DataError(
            f"KTO needs the candidates of two queries at least, and {len(queries)} is left"
        )
    tokens = [
        completion_ids(tokenizer, each._asdict(), each.texts, options.prompt, **limits)
        for each in queries
    ]
    rows: Rows = {"train": [], "dev": []}
    for number, (each, (prompt, texts)) in enumerate(zip(queries, tokens, strict=True)):
        _, unrelated = tokens[number - 1]
        for place, (text, label) in enumerate(zip(texts, each.desirable, strict=True)):
            row = {"prompt_ids": prompt, "completion_ids": text, "label": label}
            row["KL_completion_ids"] = unrelated[place % len(unrelated)]
            rows[each.split].append(row)
    labels = [row["label"] for row in rows["train"]]
    job.counts |= {"desirable": sum(labels), "undesirable": len(labels) - sum(labels)}
    return rows


def judged(job: Job) -> Iterator[Judged]:
    """Yield the queries that are trained or measured on."""
    table = pq.read_table(job.inputs["pairs"] / "pairs.parquet", columns=["query_id", "split"])
    split_of = {row["query_id"]: row["split"] for row in table.to_pylist()}
    counts = job.spec.inputs["pairs"].counts
    threshold, share = counts["acceptance_threshold"], len(split_of) / max(counts["accepted"], 1)
    for query_id, rows in _queries(job):
        texts = [(row["text"], row["finish_reason"]) for row in rows]
        accepted = choose_pair(rows)["best_similarity"] >= threshold - ROUNDING
        if query_id in split_of:
            median = np.median([row["reward"] for row in rows])
            desirable = [bool(row["reward"] >= median) for row in rows]
            yield Judged(query_id, rows[0]["query"], split_of[query_id], texts, desirable)
        elif not accepted and unit_interval("kto", job.seed, query_id) < share:
            yield Judged(query_id, rows[0]["query"], "train", texts, [False] * len(rows))


def _queries(job: Job) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the candidates of one query after the other."""
    for shard in job.shards("rewards"):
        rows: list[dict[str, Any]] = pq.read_table(shard / "rewards.parquet").to_pylist()
        for query_id, group in groupby(rows, key=itemgetter("query_id")):
            yield query_id, list(group)
