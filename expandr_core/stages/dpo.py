"""DPO: train a LoRA adapter to prefer the chosen texts (Rafailov et al., 2023; TRL's trainer).

Input roles: `llm`, `pairs`, and `adapter` if training starts from `llm` plus a separate adapter; the
result is then the sum of that adapter and the trained one, again an adapter of `llm`. Writes the adapter
and training_log.json; if there are dev pairs, the adapter of the step with the lowest loss on them.

Differs from the reference: the prompt's token ids are those of generation and are never cut; the token
that ends the assistant's turn is appended, but only to texts that the model had ended itself; the
adapted layers are explicit. Dropout is off, as it was in effect in the reference.
"""

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

import pyarrow.parquet as pq

from expandr_core.errors import DataError
from expandr_core.generation.chat_templates import load_tokenizer
from expandr_core.generation.pair_tokens import preference_ids
from expandr_core.options.base import Options
from expandr_core.options.generation import ChatOptions, PromptOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.training import DPOTrainingOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.runtime.device import run_device
from expandr_core.runtime.job import Job

if TYPE_CHECKING:
    from expandr_core.training.dpo import DPOTask

log = logging.getLogger(__name__)
VERSION = 4
ROLE = "train"
ISOLATION = "always"
AVERAGED = 5  # steps, for the measures at the beginning and at the end
MEASURES = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")


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
    training = options.training
    pairs = step.counts["train_pairs"] * training.epochs
    times = math.ceil(pairs / training.batch_size / training.evaluation_steps)
    return {"pairs": pairs, "dev pairs": step.counts["dev_pairs"] * times}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that no pair is too long."""
    pairs = step.inputs["pairs"].counts
    return {"train_pairs": pairs["train"], "dev_pairs": pairs["pairs"] - pairs["train"]}


def run(job: Job) -> None:
    """Train an adapter of `llm` on `pairs`; write it, and `training_log.json`."""
    import torch

    from expandr_core.generation.adapters import add, write_config
    from expandr_core.training.distributed import launch
    from expandr_core.training.dpo import train

    options: DPOOptions = job.options
    device = run_device(job.spec.runtime.get("device", "auto"))
    task, training = prepare(job), options.training
    # in this process the Trainer would use all GPUs
    several_gpus = device != "cpu" and torch.cuda.device_count() > 1
    if training.processes == 1 and training.zero == "none" and not several_gpus:
        history = train(task, device, job.progress)
    else:
        history = launch(train, training.processes, device, task)
    if task.adapter is not None:
        add(task.adapter, job.out)
    write_config(job.out, base_model_name_or_path=job.spec.inputs["llm"].key)
    _write_log(job, history)


def prepare(job: Job) -> "DPOTask":
    """Tokenise the pairs, and find the checkpoint to resume from.

    Raises:
        DataError: if the processes cannot share a step evenly, no pair is left for training, or a prompt
            leaves no room for a text.
    """
    from expandr_core.training.checkpoints import newest_checkpoint
    from expandr_core.training.dpo import DPOTask, save_pairs, shares_of_batch

    options: DPOOptions = job.options
    training = options.training
    shares_of_batch(training)  # fail before any process is started
    tokenizer = load_tokenizer(job.inputs["llm"], options.chat)
    limits = {"max_prompt_tokens": options.prompt.max_tokens, "max_tokens": training.max_tokens}
    pairs: dict[str, list[dict[str, list[int]]]] = {"train": [], "dev": []}
    for row in pq.read_table(job.inputs["pairs"] / "pairs.parquet").to_pylist():
        pairs[row["split"]].append(preference_ids(tokenizer, row, options.prompt, **limits))
    if not pairs["train"]:
        raise DataError("no preference pair is left for training; lower preferences.dpo_dev_share")
    for split, rows in pairs.items():
        job.counts[f"{split}_pairs"] = len(rows)
    for side in ("chosen", "rejected"):
        tokens = fmean(len(row[f"{side}_ids"]) for row in pairs["train"])
        job.counts[f"{side}_tokens"] = round(tokens, 1)
    folder = job.checkpoints / "pairs"
    save_pairs(pairs, folder)
    # a checkpoint fits only the layout that wrote it
    checkpoints = job.checkpoints / f"{training.processes}-zero-{training.zero}"
    return DPOTask(
        llm=job.inputs["llm"],
        adapter=job.inputs.get("adapter"),
        pairs=folder,
        checkpoints=checkpoints,
        checkpoint=newest_checkpoint(checkpoints, training.processes),
        events=job.store.scratch / "tensorboard" / job.spec.key,
        out=job.out,
        options=training,
        seed=job.seed,
    )


def _write_log(job: Job, history: Iterable[dict[str, Any]]) -> None:
    """Write loss, accuracies and margins by step; no times, so that equal runs give equal bytes."""
    options: DPOOptions = job.options
    steps = []
    for entry in history:
        kept = {
            name: value
            for name, value in entry.items()
            if name == "step" or name.removeprefix("eval_") in MEASURES
        }
        if len(kept) > 1:
            steps.append(kept | _divergence(kept, options.training.beta))
    # sorted, since a checkpoint returns its entries with sorted names
    Path(job.out, "training_log.json").write_text(
        json.dumps(steps, indent=1, sort_keys=True, allow_nan=False)
    )
    trained = [entry for entry in steps if "loss" in entry]  # not the summary at the end
    job.counts["steps"] = trained[-1]["step"]
    for when, entries in (("first", trained[:AVERAGED]), ("last", trained[-AVERAGED:])):
        for name in (*MEASURES, "kl"):
            job.counts[f"{when}/{name}"] = round(fmean(entry[name] for entry in entries), 4)
    evaluated = [entry for entry in steps if "eval_loss" in entry]
    if evaluated:
        best = min(evaluated, key=lambda entry: entry["eval_loss"])
        job.counts["best_step"] = best["step"]
        for name in ("accuracies", "margins"):
            job.counts[f"dev_{name}"] = round(best[f"eval_rewards/{name}"], 4)
        job.counts["dev_kl"] = round(best["eval_kl"], 4)
    log.info("DPO on %d pairs: %d steps", job.counts["train_pairs"], job.counts["steps"])


def _divergence(entry: dict[str, float], beta: float) -> dict[str, float]:
    """Estimate the divergence from the reference, KL(reference || policy), in nats per text.

    The texts of the pairs were sampled from the reference, so the mean of log(reference / policy) over
    them, which is minus a reward over beta, estimates it; chosen and rejected texts count alike.
    """
    return {
        f"{when}kl": -(entry[f"{when}rewards/chosen"] + entry[f"{when}rewards/rejected"]) / 2 / beta
        for when in ("", "eval_")
        if f"{when}rewards/chosen" in entry
    }
