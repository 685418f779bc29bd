"""What the stages dpo, sft and kto share: from rows of token ids to an adapter and its log."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from expandr_core.errors import DataError
from expandr_core.options.generation import PromptOptions
from expandr_core.options.training import AlignmentTrainingOptions
from expandr_core.runtime.device import run_device
from expandr_core.runtime.job import Job

if TYPE_CHECKING:
    from expandr_core.training.alignment import AlignmentTask, Method

AVERAGED = 5  # steps, for the measures at the beginning and at the end
Rows = dict[str, list[dict[str, Any]]]  # by split: "train", "dev"
Entry = dict[str, Any]


def rows_to_train(
    counts: Mapping[str, float], options: AlignmentTrainingOptions, unit: str
) -> dict[str, float]:
    """Return the rows to train on, and those to measure on, each as often as that happens.

    Args:
        counts: of the stage, see `prepare_training`.
        options: how to train.
        unit: what a row is: "pairs" or "texts".

    >>> options = AlignmentTrainingOptions(epochs=2, batch_size=10, evaluation_steps=5)
    >>> rows_to_train({"train_pairs": 100, "dev_pairs": 7}, options, "pairs")
    {'pairs': 200.0, 'dev pairs': 28}
    """
    rows = counts[f"train_{unit}"] * options.epochs
    times = math.ceil(rows / options.batch_size / options.evaluation_steps)
    return {unit: rows, f"dev {unit}": counts[f"dev_{unit}"] * times}


def token_limits(prompt: PromptOptions, options: AlignmentTrainingOptions) -> dict[str, int]:
    """Return the limits in tokens of a prompt, and of a prompt with its text."""
    return {"max_prompt_tokens": prompt.max_tokens, "max_tokens": options.max_tokens}


def prepare_training(
    job: Job,
    method: "Method",
    options: AlignmentTrainingOptions,
    unit: str,
    tokenise: Callable[[Job], Rows],
) -> "AlignmentTask":
    """Tokenise the rows, and find the checkpoint to resume from.

    Args:
        job: of the stage.
        method: of training.
        options: of the type that belongs to the method.
        unit: what a row is, for the counts: "pairs" or "texts".
        tokenise: returns the rows, as the method's trainer wants them.

    Raises:
        DataError: if the processes cannot share a step evenly, or no row is left for training.
    """
    from expandr_core.training.alignment import AlignmentTask, save_rows, shares_of_batch
    from expandr_core.training.checkpoints import newest_checkpoint

    shares_of_batch(options)  # fail before any process is started
    rows = tokenise(job)
    if not rows["train"]:
        raise DataError("no preference pair is left for training; lower preferences.dpo_dev_share")
    for split, each in rows.items():
        job.counts[f"{split}_{unit}"] = len(each)
    folder = job.checkpoints / "rows"
    save_rows(rows, folder)
    # a checkpoint fits only the layout that wrote it
    checkpoints = job.checkpoints / f"{options.processes}-zero-{options.zero}"
    return AlignmentTask(
        method=method,
        llm=job.inputs["llm"],
        adapter=job.inputs.get("adapter"),
        rows=folder,
        checkpoints=checkpoints,
        checkpoint=newest_checkpoint(checkpoints, options.processes),
        events=job.store.scratch / "tensorboard" / job.spec.key,
        out=job.out,
        options=options,
        seed=job.seed,
    )


def train_adapter(job: Job, task: "AlignmentTask") -> list[Entry]:
    """Train, in several processes if the options say so, and write the adapter; return the log."""
    import torch

    from expandr_core.generation.adapters import add, write_config
    from expandr_core.training.alignment import train
    from expandr_core.training.distributed import launch

    device = run_device(job.spec.runtime.get("device", "auto"))
    # in this process the Trainer would use all GPUs
    several_gpus = device != "cpu" and torch.cuda.device_count() > 1
    if task.options.processes == 1 and task.options.zero == "none" and not several_gpus:
        history = train(task, device, job.progress)
    else:
        history = launch(train, task.options.processes, device, task)
    if task.adapter is not None:
        add(task.adapter, job.out)
    write_config(job.out, base_model_name_or_path=job.spec.inputs["llm"].key)
    return history


def no_more(entry: Entry) -> Entry:
    """Derive nothing from an entry of the log."""
    return {}


def write_log(
    job: Job,
    history: Iterable[Entry],
    measures: Sequence[str],
    on_dev: Sequence[str],
    derived: Callable[[Entry], Entry] = no_more,
) -> None:
    """Write the measures by step to training_log.json; no times, so that equal runs give equal bytes.

    The counts get the steps, the measures at the beginning and at the end, and those of the best step.

    Args:
        job: of the stage.
        history: the trainer's log.
        measures: to keep; those on the dev rows are prefixed "eval_".
        on_dev: measures to count of the best step.
        derived: returns measures that are computed from others.
    """
    steps: list[Entry] = []
    for entry in history:
        kept = {
            name: value
            for name, value in entry.items()
            if name == "step" or name.removeprefix("eval_") in measures
        }
        if len(kept) > 1:
            steps.append(kept | derived(kept))
    # sorted, since a checkpoint returns its entries with sorted names
    Path(job.out, "training_log.json").write_text(
        json.dumps(steps, indent=1, sort_keys=True, allow_nan=False)
    )
    trained = [entry for entry in steps if "loss" in entry]  # not the summary at the end
    job.counts["steps"] = trained[-1]["step"]
    for when, entries in (("first", trained[:AVERAGED]), ("last", trained[-AVERAGED:])):
        for name in dict.fromkeys((*measures, *trained[0])):
            values = [entry[name] for entry in entries if name in entry]
            if name != "step" and values:
                job.counts[f"{when}/{name}"] = round(fmean(values), 4)
    evaluated = [entry for entry in steps if "eval_loss" in entry]
    if evaluated:
        best = min(evaluated, key=lambda entry: entry["eval_loss"])
        job.counts["best_step"] = best["step"]
        for name in on_dev:
            if f"eval_{name}" in best:
                job.counts[f"dev_{name.rpartition('/')[2]}"] = round(best[f"eval_{name}"], 4)
