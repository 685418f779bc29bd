"""Alignment in one process or several: TRL's trainers on our own token ids, DeepSpeed as an option.

Every layout takes the same steps: `training_order` fixes the rows of a step, however many processes
share them, and the trainers divide a loss by what the whole step has. Layouts differ only in the order
in which rounded numbers are added.
"""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoTokenizer, PrinterCallback, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.utils.import_utils import is_liger_kernel_available
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.kto_config import KTOConfig
from trl.trainer.sft_config import SFTConfig

from expandr_core.errors import DataError
from expandr_core.generation.adapters import layers_to_adapt, load_adapted
from expandr_core.options.training import (
    AlignmentTrainingOptions,
    DPOTrainingOptions,
    KTOTrainingOptions,
)
from expandr_core.runtime.job import Progress
from expandr_core.seeding import derive_seed
from expandr_core.training.callbacks import FiniteCallback, ProgressCallback
from expandr_core.training.candidate_trainer import CandidateTrainer
from expandr_core.training.distributed import rank
from expandr_core.training.pair_trainer import PairTrainer
from expandr_core.training.token_trainer import TextTrainer
from expandr_core.training.zero import deepspeed_config, gathered_adapter, join_deepspeed

Method = Literal["dpo", "sft", "kto"]
Trainer = PairTrainer | TextTrainer | CandidateTrainer


@dataclass(frozen=True)
class AlignmentTask:
    """One training, as all its processes get it.

    Attributes:
        method: what is trained; its options are of the type that belongs to it.
        llm: folder of the model.
        adapter: folder of the adapter to start from, or None.
        rows: folder with the tokenised rows of each split, see `save_rows`.
        checkpoints: folder for the checkpoints.
        checkpoint: the one to resume from, or None.
        events: folder for TensorBoard.
        out: folder for the trained adapter.
        options: how to train.
        seed: seed of the run.
    """

    method: Method
    llm: Path
    adapter: Path | None
    rows: Path
    checkpoints: Path
    checkpoint: Path | None
    events: Path
    out: Path
    options: AlignmentTrainingOptions
    seed: int


def training_order(rows: int, epochs: float, batch_size: int, seed: int) -> list[int]:
    """Return the numbers of the rows in the order of training: whole steps, each pass shuffled anew.

    >>> order = training_order(rows=5, epochs=2, batch_size=4, seed=0)
    >>> len(order), sorted(order[:5]), sorted(order[5:10])
    (12, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """
    length = math.ceil(epochs * rows / batch_size) * batch_size
    generator = np.random.default_rng(seed)
    passes = [generator.permutation(rows) for _ in range(math.ceil(length / rows))]
    return np.concatenate(passes)[:length].tolist()


def shares_of_batch(options: AlignmentTrainingOptions) -> tuple[int, int]:
    """Return how many rows of a step each process takes, and how many of them at once.

    Raises:
        DataError: if the processes cannot share a step evenly.
    """
    share, rest = divmod(options.batch_size, options.processes)
    at_once = min(options.device_batch_size, share)
    if rest or share % at_once:
        raise DataError(
            f"dpo.batch_size ({options.batch_size}) must be a multiple of dpo.processes "
            f"({options.processes}) times dpo.device_batch_size ({at_once})"
        )
    return share, at_once


def make_trainer(task: AlignmentTask, device: str, report: Progress) -> Trainer:
    """Build the trainer; it computes a reference's log-probabilities once, before the first step."""
    disable_progress_bars()
    seed = derive_seed(task.method, task.seed) % 2**32
    set_seed(seed)  # before the adapter is initialised
    tokenizer: Any = AutoTokenizer.from_pretrained(
        task.llm, local_files_only=True, trust_remote_code=False
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = {split.name: Dataset.load_from_disk(str(split)) for split in task.rows.iterdir()}
    on_gpu, options = device != "cpu", task.options
    coarse = on_gpu if options.precision == "auto" else options.precision == "bfloat16"
    kind, arguments = _trainer_and_arguments(
        options, _arguments(task, on_gpu, coarse, seed, has_dev="dev" in rows)
    )
    # after the arguments, which with ZeRO-3 determine how the model is loaded
    model = load_adapted(task.llm, task.adapter, torch.bfloat16 if coarse else torch.float32)
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows.get("dev"),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=options.lora.rank,
            lora_alpha=options.lora.alpha,
            lora_dropout=0.0,
            target_modules=layers_to_adapt(model, options.lora.targets),
            task_type="CAUSAL_LM",
        ),
        callbacks=[ProgressCallback(report), FiniteCallback(_remedy(task))],
    )
    trainer.remove_callback(PrinterCallback)
    if not rank():
        trainer.add_callback(TensorBoardCallback(SummaryWriter(task.events)))
    order = training_order(len(rows["train"]), options.epochs, options.batch_size, seed)
    data: Any = trainer.train_dataset  # with the reference's log-probabilities
    trainer.train_dataset = data.select(order)
    return trainer


def _trainer_and_arguments(
    options: AlignmentTrainingOptions, shared: dict[str, Any]
) -> tuple[type[Trainer], Any]:
    """Return the type of the trainer, and TRL's arguments for it."""
    match options:
        case DPOTrainingOptions():
            return PairTrainer, DPOConfig(
                **shared,
                beta=options.beta,
                loss_type=list(options.loss),
                loss_weights=list(options.loss_weights) or None,
                ld_alpha=options.ld_alpha if options.ld_alpha < 1 else None,
                label_smoothing=options.label_smoothing,
                precompute_ref_log_probs=True,
            )
        case KTOTrainingOptions():
            return CandidateTrainer, KTOConfig(
                **shared,
                beta=options.beta,
                desirable_weight=options.desirable_weight,
                undesirable_weight=options.undesirable_weight,
                precompute_ref_log_probs=True,
            )
        case _:
            return TextTrainer, SFTConfig(**shared)


def _remedy(task: AlignmentTask) -> str:
    options = task.options
    rate = "align.sft_learning_rate" if task.method == "sft" else "dpo.learning_rate"
    return (
        f"lower {rate} ({options.learning_rate:g}) or raise dpo.warmup_steps "
        f"({options.warmup_steps}); if it diverges at step 1 at any rate, the model that it starts "
        "from is broken"
    )


def _arguments(
    task: AlignmentTask, on_gpu: bool, coarse: bool, seed: int, has_dev: bool
) -> dict[str, Any]:
    """Return the arguments that TRL's three trainers share."""
    options = task.options
    share, device_batch = shares_of_batch(options)
    steps = options.evaluation_steps if has_dev else options.checkpoint_steps
    return {
        "output_dir": str(task.checkpoints),
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": options.warmup_steps,
        "num_train_epochs": 1,  # of `training_order`
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": device_batch,
        "per_device_eval_batch_size": device_batch,
        "gradient_accumulation_steps": share // device_batch,
        "max_grad_norm": options.max_grad_norm,
        "max_length": None,  # the texts are cut by us, the prompts never
        "bf16": coarse,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": options.gradient_checkpointing,
        "use_liger_kernel": on_gpu and is_liger_kernel_available(),
        "deepspeed": deepspeed_config(options.zero, on_gpu),
        "seed": seed,
        "logging_steps": 1,  # a mean over several would lose the steps before a kill
        "logging_nan_inf_filter": False,  # which would hide a loss that is not a number
        "eval_strategy": "steps" if has_dev else "no",
        "eval_steps": steps,
        "save_strategy": "steps",
        "save_steps": steps,
        "save_total_limit": 2,
        "load_best_model_at_end": has_dev,
        "metric_for_best_model": "loss" if has_dev else None,
        "report_to": "none",
        "disable_tqdm": True,
    }


def train(task: AlignmentTask, device: str, report: Progress) -> list[dict[str, Any]]:
    """Train, or resume from the checkpoint; the first process writes the adapter.

    Returns:
        The trainer's log: a dictionary of measures for each step.

    Raises:
        DataError: if a loss, gradient or weight is not finite.
        RuntimeError: if the GPU runs out of memory, with the options to change.
    """
    if task.options.zero != "none":
        join_deepspeed()
    try:
        trainer = make_trainer(task, device, report)
        trainer.train(resume_from_checkpoint=str(task.checkpoint) if task.checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"the memory of the GPU does not suffice for {task.method.upper()}: lower "
            f"dpo.device_batch_size (now {task.options.device_batch_size}), set "
            "dpo.gradient_checkpointing, share the weights with dpo.zero '3' and more "
            "dpo.processes, or lower dpo.max_tokens"
        ) from error
    _save_adapter(trainer, task.out, task.options.zero)
    return trainer.state.log_history


def _save_adapter(trainer: Trainer, folder: Path, zero: str) -> None:
    """Write the adapter in the first process; with ZeRO-3 all put its weights together first."""
    model: Any = trainer.model
    state = gathered_adapter(model) if zero == "3" else None
    if not rank():
        # False, since "auto" asks the hub
        model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)


def save_rows(rows: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Write the tokenised rows of each split for all processes, unless the folder exists."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, each in rows.items():
        if each:
            Dataset.from_list(each).save_to_disk(partial / split)
    partial.rename(folder)
