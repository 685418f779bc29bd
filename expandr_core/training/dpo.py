"""DPO in one process or several: TRL's trainer on our own token ids, with DeepSpeed as an option.

Every layout takes the same steps: `training_order` fixes the pairs of a step, however many processes
share them. Layouts differ only in the order in which rounded numbers are added.
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

from expandr_core.errors import DataError
from expandr_core.generation.adapters import layers_to_adapt, load_adapted
from expandr_core.options.training import DPOTrainingOptions
from expandr_core.runtime.job import Progress
from expandr_core.seeding import derive_seed
from expandr_core.training.callbacks import FiniteCallback, ProgressCallback
from expandr_core.training.distributed import rank
from expandr_core.training.token_trainer import TokenTrainer

Zero = Literal["none", "2", "3"]


@dataclass(frozen=True)
class DPOTask:
    """One training, as all its processes get it.

    Attributes:
        llm: folder of the model.
        adapter: folder of the adapter to start from, or None.
        pairs: folder with the tokenised pairs of each split, see `save_pairs`.
        checkpoints: folder for the checkpoints.
        checkpoint: the one to resume from, or None.
        events: folder for TensorBoard.
        out: folder for the trained adapter.
        options: options of DPO.
        seed: seed of the run.
    """

    llm: Path
    adapter: Path | None
    pairs: Path
    checkpoints: Path
    checkpoint: Path | None
    events: Path
    out: Path
    options: DPOTrainingOptions
    seed: int


def training_order(pairs: int, epochs: float, batch_size: int, seed: int) -> list[int]:
    """Return the numbers of the pairs in the order of training: whole steps, each pass shuffled anew.

    >>> order = training_order(pairs=5, epochs=2, batch_size=4, seed=0)
    >>> len(order), sorted(order[:5]), sorted(order[5:10])
    (12, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    """
    length = math.ceil(epochs * pairs / batch_size) * batch_size
    generator = np.random.default_rng(seed)
    passes = [generator.permutation(pairs) for _ in range(math.ceil(length / pairs))]
    return np.concatenate(passes)[:length].tolist()


def shares_of_batch(options: DPOTrainingOptions) -> tuple[int, int]:
    """Return how many pairs of a step each process takes, and how many of them at once.

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


def make_trainer(task: DPOTask, device: str, report: Progress) -> TokenTrainer:
    """Build the trainer; it computes the reference's log-probabilities once, before the first step."""
    disable_progress_bars()
    seed = derive_seed("dpo", task.seed) % 2**32
    set_seed(seed)  # before the adapter is initialised
    tokenizer = AutoTokenizer.from_pretrained(
        task.llm, local_files_only=True, trust_remote_code=False
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    pairs = {split.name: Dataset.load_from_disk(str(split)) for split in task.pairs.iterdir()}
    on_gpu = device != "cpu"
    arguments = _arguments(task, on_gpu, seed, has_dev="dev" in pairs)
    # after the arguments, which with ZeRO-3 determine how the model is loaded
    model = load_adapted(task.llm, task.adapter, torch.bfloat16 if on_gpu else torch.float32)
    trainer = TokenTrainer(
        model=model,
        args=arguments,
        train_dataset=pairs["train"],
        eval_dataset=pairs.get("dev"),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=task.options.lora.rank,
            lora_alpha=task.options.lora.alpha,
            lora_dropout=0.0,
            target_modules=layers_to_adapt(model, task.options.lora.targets),
            task_type="CAUSAL_LM",
        ),
        callbacks=[ProgressCallback(report), FiniteCallback(_remedy(task.options))],
    )
    trainer.remove_callback(PrinterCallback)
    if not rank():
        trainer.add_callback(TensorBoardCallback(SummaryWriter(task.events)))
    options = task.options
    order = training_order(len(pairs["train"]), options.epochs, options.batch_size, seed)
    trainer.train_dataset = trainer.train_dataset.select(order)
    return trainer


def _remedy(options: DPOTrainingOptions) -> str:
    return (
        f"lower dpo.learning_rate ({options.learning_rate:g}) or raise dpo.warmup_steps "
        f"({options.warmup_steps}); if it diverges at step 1 at any rate, the model that it starts "
        "from is broken"
    )


def _arguments(task: DPOTask, on_gpu: bool, seed: int, has_dev: bool) -> DPOConfig:
    options = task.options
    share, device_batch = shares_of_batch(options)
    steps = options.evaluation_steps if has_dev else options.checkpoint_steps
    return DPOConfig(
        output_dir=str(task.checkpoints),
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=options.warmup_steps,
        num_train_epochs=1,  # of `training_order`
        train_sampling_strategy="sequential",
        per_device_train_batch_size=device_batch,
        per_device_eval_batch_size=device_batch,
        gradient_accumulation_steps=share // device_batch,
        max_grad_norm=options.max_grad_norm,
        beta=options.beta,
        precompute_ref_log_probs=True,
        max_length=None,  # the texts are cut by us, the prompts never
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=options.gradient_checkpointing,
        use_liger_kernel=on_gpu and is_liger_kernel_available(),
        deepspeed=_deepspeed(options.zero, on_gpu),
        seed=seed,
        logging_steps=1,  # a mean over several would lose the steps before a kill
        logging_nan_inf_filter=False,  # which would hide a loss that is not a number
        eval_strategy="steps" if has_dev else "no",
        eval_steps=steps,
        save_strategy="steps",
        save_steps=steps,
        save_total_limit=2,
        load_best_model_at_end=has_dev,
        metric_for_best_model="loss" if has_dev else None,
        report_to="none",
        disable_tqdm=True,
    )


def _deepspeed(zero: Zero, on_gpu: bool) -> dict[str, Any] | None:
    """Return DeepSpeed's configuration; the trainer fills in what is "auto".

    ZeRO-2 shares the optimiser's state and the gradients, ZeRO-3 the weights too. The optimiser is
    torch's, in every layout.
    """
    if zero == "none":
        return None
    return {
        "zero_optimization": {
            "stage": int(zero),
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            "reduce_scatter": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


def train(task: DPOTask, device: str, report: Progress) -> list[dict[str, Any]]:
    """Train, or resume from the checkpoint; the first process writes the adapter.

    Returns:
        The trainer's log: a dictionary of measures for each step.

    Raises:
        DataError: if a loss, gradient or weight is not finite.
        RuntimeError: if the GPU runs out of memory, with the options to change.
    """
    if task.options.zero != "none":
        _join_deepspeed()
    try:
        trainer = make_trainer(task, device, report)
        trainer.train(resume_from_checkpoint=task.checkpoint and str(task.checkpoint))
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            "the memory of the GPU does not suffice for DPO: lower dpo.device_batch_size (now "
            f"{task.options.device_batch_size}), set dpo.gradient_checkpointing, share the weights "
            "with dpo.zero '3' and more dpo.processes, or lower dpo.max_tokens"
        ) from error
    _save_adapter(trainer, task.out, task.options.zero)
    return trainer.state.log_history


def _join_deepspeed() -> None:
    """Make DeepSpeed use the process group that exists already.

    Raises:
        DataError: if it is not installed.
    """
    try:
        import deepspeed.ops
    except ImportError as error:
        raise DataError(
            "dpo.zero needs DeepSpeed: `pip install 'expandr-on-prefect[deepspeed]'` on the machine "
            "that trains, or set dpo.zero to 'none'"
        ) from error

    # on a CPU it would compile an operation for shared memory; torch's own collectives do as well
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False)


def _save_adapter(trainer: TokenTrainer, folder: Path, zero: Zero) -> None:
    """Write the adapter in the first process; with ZeRO-3 all put its weights together first."""
    model: Any = trainer.model
    state = None
    if zero == "3":
        import deepspeed

        trained = [weight for weight in model.parameters() if weight.requires_grad]
        with deepspeed.zero.GatheredParameters(trained):
            adapter = {name: value for name, value in model.state_dict().items() if "lora_" in name}
            state = {name: value.clone() for name, value in adapter.items()}
    if not rank():
        # False, since "auto" asks the hub
        model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)


def save_pairs(pairs: dict[str, list[dict[str, list[int]]]], folder: Path) -> None:
    """Write the tokenised pairs of each split for all processes, unless the folder exists."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, rows in pairs.items():
        if rows:
            Dataset.from_list(rows).save_to_disk(partial / split)
    partial.rename(folder)
