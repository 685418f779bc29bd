"""SFT: train a LoRA adapter to write the chosen texts (TRL's trainer).

Input roles and files are those of the stage dpo; what is rejected plays no part. The token ids are those
of DPO, too, and only the text is learned, not the prompt.
"""

import logging
from typing import TYPE_CHECKING, Self

import pyarrow.parquet as pq

from expandr_core.generation.chat_templates import load_tokenizer
from expandr_core.generation.pair_tokens import completion_ids
from expandr_core.options.base import Options
from expandr_core.options.generation import ChatOptions, PromptOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.training import AlignmentTrainingOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.runtime.job import Job
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
IGNORED = -100  # the label of a token that is not learned


class SFTOptions(Options):
    """How to train, and the prompt that the texts were written for."""

    training: AlignmentTrainingOptions = AlignmentTrainingOptions()
    prompt: PromptOptions = PromptOptions()
    chat: ChatOptions = ChatOptions()

    @classmethod
    def of(cls, options: JointLoopOptions, chat: ChatOptions) -> Self:
        """Align the language model of the loop."""
        align = options.align
        own = {"learning_rate": align.sft_learning_rate, "epochs": align.sft_epochs}
        training = AlignmentTrainingOptions.model_validate(options.dpo.shared() | own)
        return cls(training=training, prompt=options.expand.prompt, chat=chat)


OPTIONS = SFTOptions


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the texts to train on, and those to measure on, each as often as that happens."""
    options: SFTOptions = step.options
    return rows_to_train(step.counts, options.training, "texts")


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict a text for each pair."""
    pairs = step.inputs["pairs"].counts
    return {"train_texts": pairs["train"], "dev_texts": pairs["pairs"] - pairs["train"]}


def run(job: Job) -> None:
    """Train an adapter of `llm` on the chosen texts; write it, and `training_log.json`."""
    write_log(job, train_adapter(job, prepare(job)), measures=("loss",), on_dev=("loss",))
    log.info("SFT on %d texts: %d steps", job.counts["train_texts"], job.counts["steps"])


def prepare(job: Job) -> "AlignmentTask":
    """Tokenise the chosen texts, and find the checkpoint to resume from.

    Raises:
        DataError: if the processes cannot share a step evenly, no text is left for training, or a prompt
            leaves no room for it.
    """
    options: SFTOptions = job.options
    return prepare_training(job, "sft", options.training, "texts", token_rows)


def token_rows(job: Job) -> Rows:
    """Tokenise prompt and chosen text of each pair; the labels leave the prompt out."""
    options: SFTOptions = job.options
    tokenizer = load_tokenizer(job.inputs["llm"], options.chat)
    limits = token_limits(options.prompt, options.training)
    rows: Rows = {"train": [], "dev": []}
    for row in pq.read_table(job.inputs["pairs"] / "pairs.parquet").to_pylist():
        texts = [(row["chosen_text"], row["chosen_finish_reason"])]
        prompt, [text] = completion_ids(tokenizer, row, texts, options.prompt, **limits)
        labels = [IGNORED] * len(prompt) + text
        rows[row["split"]].append({"input_ids": prompt + text, "labels": labels})
    return rows
