"""DPO: train a LoRA adapter to prefer the chosen texts (Rafailov et al., 2023; TRL's trainer).

Input roles: `llm`, `pairs`, and `adapter` if the model to start from is `llm` with an adapter that is
kept apart; what is written is then the sum of that one and the trained one, an adapter of `llm` again.
Writes the adapter and training_log.json; with a dev part, the adapter of the step with the lowest loss
on it. `expandr_core.training.dpo` trains.

Differs from the reference: the prompt's token ids are those of generation and are never cut; the
token that ends the assistant's turn is appended, and only to texts that the model had ended itself;
the adapted layers are explicit. Dropout is off, as it was in effect in the reference.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from expandr_core.errors import DataError
from expandr_core.generation.chat_templates import load_tokenizer
from expandr_core.generation.pair_tokens import preference_ids
from expandr_core.options.base import added
from expandr_core.options.generation import ChatOptions, Prompt
from expandr_core.options.training import DPOTrainingOptions
from expandr_core.runtime.device import run_device
from expandr_core.runtime.job import Job

if TYPE_CHECKING:
    from expandr_core.training.dpo import Task

log = logging.getLogger(__name__)
VERSION = 3
ROLE = "train"
ISOLATION = "always"
AVERAGED = 5  # steps, for the measures at the beginning and at the end
MEASURES = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")


class DPOOptions(DPOTrainingOptions):
    """The options of DPO, and the prompt that the expansions were written for."""

    prompt: Prompt = "q2d"
    max_prompt_tokens: int = 1024
    chat: ChatOptions = added(ChatOptions())


OPTIONS = DPOOptions


def run(job: Job) -> None:
    """Train an adapter of `llm` on `pairs`; write it, and `training_log.json`."""
    import torch

    from expandr_core.training.distributed import launch
    from expandr_core.training.dpo import Layout, train, train_with_others

    options: DPOOptions = job.options
    device = job.spec.runtime.get("device", "auto")
    on_gpu = run_device(device) != "cpu"
    layout = Layout(options.processes, options.zero, on_gpu)
    task = prepare(job)
    alone = options.processes == 1 and options.zero == "none"
    if alone and not (on_gpu and torch.cuda.device_count() > 1):  # else the Trainer would use all
        history = train(task, layout, job.progress).state.log_history
    else:
        history = launch(train_with_others, options.processes, task, layout, device)
    _complete_adapter(task, job.spec.inputs["llm"].key)
    _write_log(job, history)


def prepare(job: Job) -> "Task":
    """Tokenise the pairs, and find the checkpoint to go on from.

    Raises:
        DataError: if the processes cannot share a step evenly, no pair is left for training, or a prompt
            leaves no room for a text.
    """
    from expandr_core.training.checkpoints import last_checkpoint
    from expandr_core.training.dpo import Task, save_pairs, shares_of_batch

    options: DPOOptions = job.options
    shares_of_batch(options)  # before the processes are started
    tokenizer = load_tokenizer(job.inputs["llm"], options.chat)
    pairs: dict[str, list[dict[str, list[int]]]] = {"train": [], "dev": []}
    for row in pq.read_table(job.inputs["pairs"] / "pairs.parquet").to_pylist():
        ids = preference_ids(
            tokenizer,
            row,
            options.prompt,
            max_prompt_tokens=options.max_prompt_tokens,
            max_tokens=options.max_tokens,
        )
        pairs[row["split"]].append(ids)
    if not pairs["train"]:
        raise DataError("no preference pair is left for training; lower preferences.dev_share")
    for part, rows in pairs.items():
        job.counts[f"{part}_pairs"] = len(rows)
    for side in ("chosen", "rejected"):
        job.counts[f"{side}_tokens"] = round(
            fmean(len(row[f"{side}_ids"]) for row in pairs["train"]), 1
        )
    folder = job.checkpoints / "pairs"
    save_pairs(pairs, folder)
    # a checkpoint is of the processes that wrote it
    checkpoints = job.checkpoints / f"{options.processes}-zero-{options.zero}"
    return Task(
        llm=job.inputs["llm"],
        adapter=job.inputs.get("adapter"),
        pairs=folder,
        checkpoints=checkpoints,
        checkpoint=last_checkpoint(checkpoints, options.processes),
        events=job.store.scratch / "tensorboard" / job.spec.key,
        out=job.out,
        options=options,
        seed=job.seed,
    )


def _complete_adapter(task: "Task", llm: str) -> None:
    """Name the model that the adapter belongs to, and add the adapter that training started from."""
    from expandr_core.generation.adapters import add, write_config

    if task.adapter is not None:
        add(task.adapter, task.out)
    write_config(task.out, base_model_name_or_path=llm)


def _write_log(job: Job, history: Iterable[dict[str, Any]]) -> None:
    """Write loss, accuracies and margins by step; no times, so that equal runs give equal bytes."""
    steps = []
    for entry in history:
        kept = {
            name: value
            for name, value in entry.items()
            if name == "step" or name.removeprefix("eval_") in MEASURES
        }
        if len(kept) > 1:
            steps.append(kept | _divergence(kept, job.options.beta))
    # a checkpoint gives entries back with their names sorted
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
    """Estimate the divergence of the policy from the reference, KL(reference || policy), in nats a text.

    The texts of the pairs were sampled from the reference, so the mean of log(reference / policy), which
    is minus a reward over beta, estimates it; the chosen and the rejected one count alike.
    """
    return {
        f"{part}kl": -(entry[f"{part}rewards/chosen"] + entry[f"{part}rewards/rejected"]) / 2 / beta
        for part in ("", "eval_")
        if f"{part}rewards/chosen" in entry
    }
