"""DPO: train a LoRA adapter to prefer the chosen texts (Rafailov et al., 2023; TRL's trainer).

Input roles: `llm`, `pairs`, and `adapter` if training starts from `llm` plus a separate adapter; the
result is then the sum of that adapter and the trained one, again an adapter of `llm`. Writes the adapter
and training_log.json; if there are dev pairs, the adapter of the step with the lowest loss on them.

Differs from the reference: the prompt's token ids are those of generation and are never cut; the token
that ends the assistant's turn is appended, but only to texts that the model had ended itself; the
adapted layers are explicit. Dropout is off, as it was in effect in the reference.
"""

import logging
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Self

import pyarrow.parquet as pq

from expandr_core.generation.chat_templates import load_tokenizer
from expandr_core.generation.pair_tokens import preference_ids
from expandr_core.options.base import Options
from expandr_core.options.generation import ChatOptions, PromptOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.training import DPOTrainingOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.runtime.job import Job
from expandr_core.training.alignment_stage import (
    Entry,
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
VERSION = 4
ROLE = "train"
ISOLATION = "always"
MEASURES = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")
ON_DEV = ("rewards/accuracies", "rewards/margins", "kl")


class DPOOptions(Options):
    """How to train, and the prompt that the texts were written for."""

    training: DPOTrainingOptions = DPOTrainingOptions()
    prompt: PromptOptions = PromptOptions()
    chat: ChatOptions = ChatOptions()

    @classmethod
    def of(cls, options: JointLoopOptions, chat: ChatOptions) -> Self:
        """Align the language model of the loop."""
        return cls(training=options.dpo, prompt=options.expand.prompt, chat=chat)


OPTIONS = DPOOptions


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the pairs to train on, and those to measure on, each as often as that happens."""
    options: DPOOptions = step.options
    return rows_to_train(step.counts, options.training, "pairs")


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that no pair is too long."""
    pairs = step.inputs["pairs"].counts
    return {"train_pairs": pairs["train"], "dev_pairs": pairs["pairs"] - pairs["train"]}


def run(job: Job) -> None:
    """Train an adapter of `llm` on `pairs`; write it, and `training_log.json`."""
    options: DPOOptions = job.options
    history = train_adapter(job, prepare(job))
    derived = partial(_divergence, beta=options.training.beta)
    write_log(job, history, MEASURES, ON_DEV, derived)
    log.info("DPO on %d pairs: %d steps", job.counts["train_pairs"], job.counts["steps"])


def prepare(job: Job) -> "AlignmentTask":
    """Tokenise the pairs, and find the checkpoint to resume from.

    Raises:
        DataError: if the processes cannot share a step evenly, no pair is left for training, or a prompt
            leaves no room for a text.
    """
    options: DPOOptions = job.options
    return prepare_training(job, "dpo", options.training, "pairs", token_rows)


def token_rows(job: Job) -> Rows:
    """Tokenise the pairs, and count their mean lengths."""
    options: DPOOptions = job.options
    tokenizer = load_tokenizer(job.inputs["llm"], options.chat)
    limits = token_limits(options.prompt, options.training)
    rows: Rows = {"train": [], "dev": []}
    for row in pq.read_table(job.inputs["pairs"] / "pairs.parquet").to_pylist():
        rows[row["split"]].append(preference_ids(tokenizer, row, options.prompt, **limits))
    for side in ("chosen", "rejected"):
        if rows["train"]:
            tokens = fmean(len(row[f"{side}_ids"]) for row in rows["train"])
            job.counts[f"{side}_tokens"] = round(tokens, 1)
    return rows


def _divergence(entry: Entry, beta: float) -> Entry:
    """Estimate the divergence from the reference, KL(reference || policy), in nats per text.

    The texts of the pairs were sampled from the reference, so the mean of log(reference / policy) over
    them, which is minus a reward over beta, estimates it; chosen and rejected texts count alike. With
    `ld_alpha` the surplus of the longer text counts less in it.
    """
    return {
        f"{when}kl": -(entry[f"{when}rewards/chosen"] + entry[f"{when}rewards/rejected"]) / 2 / beta
        for when in ("", "eval_")
        if f"{when}rewards/chosen" in entry
    }
