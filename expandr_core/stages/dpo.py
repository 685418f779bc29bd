"""DPO: train a LoRA adapter to prefer the chosen texts (Rafailov et al., 2023; TRL's trainer).

Differs from the reference: the prompt's token ids are those of generation and are never cut; the
token that ends the assistant's turn is appended, and only to texts that the model had ended itself;
the adapted layers are explicit. Dropout is off, as it was in effect in the reference.
"""

import json
import logging
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expandr_core.errors import DataError
from expandr_core.options import DPOOptions, Prompt
from expandr_core.prompts import fitted_prompt_ids, turn_end_id
from expandr_core.seeding import derive_seed
from expandr_core.stage import Job

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase
    from trl.trainer.dpo_trainer import DPOTrainer

log = logging.getLogger(__name__)
VERSION = 1
ROLE = "train"
ISOLATION = "always"
AVERAGED = 5  # steps, for the measures at the beginning and at the end
MEASURES = ("loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")


class OPTIONS(DPOOptions):
    """The options of DPO, and the prompt that the expansions were written for."""

    prompt: Prompt = "q2d"
    max_prompt_tokens: int = 1024


def run(job: Job) -> None:
    """Train an adapter of `llm` on `pairs`; write it, and `training_log.json`."""
    from transformers import AutoTokenizer

    from expandr_core.training import last_checkpoint

    tokenizer = AutoTokenizer.from_pretrained(job.inputs["llm"], local_files_only=True)
    pairs = pq.read_table(job.inputs["pairs"] / "pairs.parquet")
    train = pairs.filter(pc.field("part") == "train")
    dev = pairs.filter(pc.field("part") == "dev")
    if not train.num_rows:
        raise DataError("no preference pair is left for training; lower preferences.dev_share")
    trainer = make_trainer(job, tokenizer, train, dev)
    trainer.train(resume_from_checkpoint=last_checkpoint(job.checkpoints))
    model: Any = trainer.model
    model.peft_config["default"].base_model_name_or_path = job.spec.inputs["llm"].key
    model.save_pretrained(job.out, save_embedding_layers=False)  # "auto" asks the hub
    (job.out / "README.md").unlink(missing_ok=True)
    config = job.out / "adapter_config.json"  # PEFT writes a set, in an order of chance
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"target_modules": sorted(values["target_modules"])}))
    _write_log(job, trainer, train.num_rows, dev.num_rows)


def preference_ids(
    tokenizer: "PreTrainedTokenizerBase", row: dict[str, Any], options: OPTIONS
) -> dict[str, list[int]]:
    """Tokenise one pair: the prompt as in generation, the texts cut to fit, the turn's end if real.

    Returns:
        `prompt_ids`, `chosen_ids`, `rejected_ids`; the prompt and either text fit `max_tokens`.

    Raises:
        DataError: if the prompt leaves no room for a text.
    """
    prompt = fitted_prompt_ids(
        tokenizer, options.prompt, row["query"], "", options.max_prompt_tokens
    )
    room = options.max_tokens - len(prompt)
    if room < 1:
        raise DataError(
            f"query {row['query_id']!r}: its prompt has {len(prompt)} tokens and dpo.max_tokens is "
            f"{options.max_tokens}; raise it, or lower expand.max_prompt_tokens"
        )
    ids = {"prompt_ids": prompt}
    for side in ("chosen", "rejected"):
        text = tokenizer.encode(row[f"{side}_text"], add_special_tokens=False)
        if row[f"{side}_finish_reason"] == "stop":
            text.append(turn_end_id(tokenizer))
        ids[f"{side}_ids"] = text[:room]
    return ids


def make_trainer(
    job: Job, tokenizer: "PreTrainedTokenizerBase", train: pa.Table, dev: pa.Table
) -> "DPOTrainer":
    """Build TRL's trainer on our own token ids."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, PrinterCallback, set_seed
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from expandr_core.training import ProgressCallback

    options: OPTIONS = job.options
    seed = derive_seed("dpo", job.seed) % 2**32
    set_seed(seed)  # before the adapter is initialised
    on_gpu = job.spec.runtime.get("device") != "cpu" and torch.cuda.is_available()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(
        job.inputs["llm"], local_files_only=True, dtype=torch.bfloat16 if on_gpu else torch.float32
    )
    device_batch = min(options.device_batch_size, options.batch_size)
    if options.batch_size % device_batch:
        raise DataError(
            f"dpo.batch_size ({options.batch_size}) must be a multiple of dpo.device_batch_size "
            f"({device_batch})"
        )
    arguments = DPOConfig(
        output_dir=str(job.checkpoints),
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=options.warmup_steps,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=device_batch,
        per_device_eval_batch_size=device_batch,
        gradient_accumulation_steps=options.batch_size // device_batch,
        max_grad_norm=options.max_grad_norm,
        beta=options.beta,
        max_length=None,  # the texts are cut by us, the prompts never
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=on_gpu,
        seed=seed,
        logging_steps=1,  # a mean over more would forget the steps before a kill
        eval_strategy="epoch" if dev.num_rows else "no",
        save_strategy="steps",
        save_steps=options.checkpoint_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
    )

    def tokenised(pairs: pa.Table) -> "Dataset":
        return Dataset.from_list(
            [preference_ids(tokenizer, row, options) for row in pairs.to_pylist()]
        )

    # TRL would tokenise through strings and the template; it is built on one row and then given ours.
    first = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(first),
        eval_dataset=Dataset.from_list(first) if dev.num_rows else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=options.lora_rank,
            lora_alpha=options.lora_alpha,
            lora_dropout=0.0,
            target_modules=list(options.lora_targets),
            task_type="CAUSAL_LM",
        ),
        callbacks=[ProgressCallback(job)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train_dataset = tokenised(train)
    if dev.num_rows:
        trainer.eval_dataset = tokenised(dev)
    return trainer


def _write_log(job: Job, trainer: "DPOTrainer", train_pairs: int, dev_pairs: int) -> None:
    """Write loss, accuracies and margins by step; no times, so that equal runs give equal bytes."""
    steps = []
    for entry in trainer.state.log_history:
        kept = {
            name: value
            for name, value in entry.items()
            if name == "step" or name.removeprefix("eval_") in MEASURES
        }
        if len(kept) > 1:
            steps.append(kept)
    # a checkpoint gives entries back with their names sorted
    Path(job.out, "training_log.json").write_text(json.dumps(steps, indent=1, sort_keys=True))
    trained = [entry for entry in steps if "loss" in entry]  # not the summary at the end
    job.counts |= {
        "train_pairs": train_pairs,
        "dev_pairs": dev_pairs,
        "steps": trainer.state.global_step,
    }
    for when, entries in (("first", trained[:AVERAGED]), ("last", trained[-AVERAGED:])):
        for name in MEASURES:
            job.counts[f"{when}/{name}"] = round(fmean(entry[name] for entry in entries), 4)
    evaluated = [entry for entry in steps if "eval_rewards/accuracies" in entry]
    if evaluated:
        job.counts["dev_accuracy"] = round(evaluated[-1]["eval_rewards/accuracies"], 4)
    log.info("DPO on %d pairs: %d steps", train_pairs, trainer.state.global_step)
