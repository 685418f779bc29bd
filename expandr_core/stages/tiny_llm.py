"""Train a small Llama and its tokenizer from scratch, on texts made from a collection.

Input role `texts`: a texts.parquet (kind, prompt, text), in the order of training. A "text" is learnt
whole; of a "chat", only the answer to the prompt. Writes a folder as `save_pretrained` does.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import cycle, islice
from typing import TYPE_CHECKING

from expandr_core.demo.bpe import train_bpe
from expandr_core.errors import DataError
from expandr_core.generation.control_tokens import encode_text
from expandr_core.generation.prompts import prompt_ids
from expandr_core.options.generation import TinyLLMOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.runtime.cores import sharing_cores
from expandr_core.runtime.device import run_device
from expandr_core.runtime.job import Job
from expandr_core.seeding import derive_seed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VERSION = 3
ROLE = "train"
ISOLATION = "always"
OPTIONS = TinyLLMOptions


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the texts of all training steps."""
    options: TinyLLMOptions = step.options
    return {"texts": options.steps * options.batch_size}


log = logging.getLogger(__name__)
_NARROW = 128  # up to this width, waking a second thread takes longer than what it would do
_MODULES = {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}
LAYERS = tuple(  # the ones that an adapter can adapt
    f"model.layers.*.{module}.{name}_proj" for module, names in _MODULES.items() for name in names
)
NOT_LEARNT = -100  # the label that the loss ignores
SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
PAD, BEGIN, END = 0, 1, 2  # their ids
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
Example = dict[str, list[int]]  # input_ids and labels, (tokens,) each


def run(job: Job) -> None:
    """Train the tokenizer, then the model."""
    import pyarrow.parquet as pq

    options: TinyLLMOptions = job.options
    rows = pq.read_table(job.inputs["texts"]).to_pylist()
    tokenizer = train_tokenizer(rows, options.vocabulary)
    size = options.steps * options.batch_size
    examples = list(islice(make_examples(rows, tokenizer, options.max_tokens), size))
    if not examples:
        raise DataError(
            f"none of the {len(rows)} texts for the tiny LLM can be used: they are empty, or their "
            f"prompts leave no room in max_tokens={options.max_tokens}; raise max_tokens"
        )
    model, loss = _train(job, tokenizer, list(islice(cycle(examples), size)))
    model.save_pretrained(job.out)
    tokenizer.save_pretrained(job.out)
    settings = job.out / "tokenizer_config.json"
    old = {"tokenizer_class": "PreTrainedTokenizerFast"}  # transformers 4 and 5 both know it
    settings.write_text(json.dumps(json.loads(settings.read_text()) | old, indent=2))
    job.counts |= {
        "texts": len(rows),
        "examples": len(examples),
        "tokens": sum(len(example["input_ids"]) for example in examples),
        "vocabulary": len(tokenizer),
        "parameters": model.num_parameters(),
        "final_loss": round(loss, 4),
    }


def train_tokenizer(rows: list[dict[str, str]], vocabulary: int) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE tokenizer with a chat template on prompts and texts."""
    from transformers import PreTrainedTokenizerFast

    texts = (row[column] for row in rows for column in ("prompt", "text"))
    return PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(texts, vocabulary, SPECIAL),
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[BEGIN],
        eos_token=SPECIAL[END],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def make_examples(
    rows: list[dict[str, str]], tokenizer: "PreTrainedTokenizerFast", max_tokens: int
) -> Iterator[Example]:
    """Tokenise rows in order: texts in pieces, chats with the answer to the prompt as labels.

    Each piece of a text starts with the begin token, and the last one ends with the end token. A chat is
    cut at the end; it is left out if its prompt leaves no room for an answer.
    """
    for row in rows:
        text = encode_text(tokenizer, row["text"])
        if not text:
            continue
        text.append(END)
        if row["kind"] == "chat":
            prompt = prompt_ids(tokenizer, row["prompt"])
            ids = (prompt + text)[:max_tokens]
            if len(ids) > len(prompt):
                yield {"input_ids": ids, "labels": [NOT_LEARNT] * len(prompt) + ids[len(prompt) :]}
            continue
        for start in range(0, len(text), max_tokens - 1):
            ids = [BEGIN, *text[start : start + max_tokens - 1]]
            yield {"input_ids": ids, "labels": ids}


def pad_batch(examples: list[Example]) -> dict[str, "Tensor"]:
    """Stack examples into tensors of shape (texts, tokens), padded on the right."""
    import torch

    def stack(rows: list[list[int]], filler: int) -> torch.Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler)

    return {
        "input_ids": stack([example["input_ids"] for example in examples], PAD),
        "labels": stack([example["labels"] for example in examples], NOT_LEARNT),
        "attention_mask": stack([[1] * len(example["input_ids"]) for example in examples], 0),
    }


def _train(
    job: Job, tokenizer: "PreTrainedTokenizerFast", examples: list[Example]
) -> tuple["LlamaForCausalLM", float]:
    """Train a new model on the examples in order, once; return it with its last steps' mean loss."""
    import torch
    from transformers import LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed

    from expandr_core.training.callbacks import FiniteCallback, ProgressCallback
    from expandr_core.training.checkpoints import newest_checkpoint

    options: TinyLLMOptions = job.options
    remedy = f"lower llm.tiny.learning_rate ({options.learning_rate:g})"
    seed = derive_seed("tiny_llm", job.seed) % 2**32
    use_cpu = run_device(job.spec.runtime.get("device", "auto")) == "cpu"
    coarse = not use_cpu or _multiplies_bfloat16()
    set_seed(seed)
    model = LlamaForCausalLM(_config(len(tokenizer), options))
    arguments = TrainingArguments(
        output_dir=str(job.checkpoints),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=min(40, options.steps // 10),
        adam_beta2=0.98,
        weight_decay=0.01,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        save_steps=options.checkpoint_steps,
        save_total_limit=1,
        bf16=coarse,
        use_cpu=use_cpu,
        seed=seed,
        report_to=[],
        logging_nan_inf_filter=False,  # which would hide a loss that is not a number
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=pad_batch,
        train_dataset=examples,  # pyrefly: ignore[bad-argument-type]
        callbacks=[ProgressCallback(job.progress), FiniteCallback(remedy)],
    )
    precision = "bfloat16" if coarse else "float32"
    log.info("training a Llama of %d parameters in %s", model.num_parameters(), precision)
    trainer.remove_callback(PrinterCallback)
    checkpoint = newest_checkpoint(job.checkpoints)
    one = coarse and use_cpu and options.hidden_size <= _NARROW
    with sharing_cores(torch.get_num_threads()) if one else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return model, sum(losses[-100:]) / len(losses[-100:])  # the last ones alone would be noise


def _multiplies_bfloat16() -> bool:
    """Return whether the processor can; others are many times slower at it than in float32."""
    import torch

    return any(has for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


def _config(vocabulary: int, options: TinyLLMOptions) -> "LlamaConfig":
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=options.hidden_size,
        intermediate_size=options.hidden_size * 8 // 3 // 32 * 32,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden_size // 32,
        num_key_value_heads=options.hidden_size // 32,
        max_position_embeddings=4 * options.max_tokens,  # room for longer prompts; rotary
        tie_word_embeddings=True,
        attn_implementation="eager",  # pyrefly: ignore[unexpected-keyword]  # quickest on a CPU
        pad_token_id=PAD,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
