"""The models with random weights that `benchmarks.gpu` measures, and how many FLOPs they take."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from expandr_core.demo.bpe import train_bpe
from expandr_core.stages.tiny_llm import train_tokenizer


@dataclass(frozen=True)
class Shape:
    """The models, and how much work they get.

    Attributes:
        llm, bert: what their configurations name.
        passages: to encode.
        encoded_at_once: sizes of a batch.
        new_tokens: of each generated text.
        generated_at_once: texts in a batch; all of vLLM's are as many as the largest of these.
        pairs: of a step of DPO.
        steps: the first is not counted.
        layouts: of DPO: pairs at once, and whether with gradient checkpointing.
    """

    llm: dict[str, Any]
    bert: dict[str, Any]
    passages: int
    encoded_at_once: tuple[int, ...]
    new_tokens: int
    generated_at_once: tuple[int, ...]
    pairs: int
    steps: int
    layouts: tuple[tuple[int, bool], ...]


FULL = Shape(
    llm={
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    },
    bert={},
    passages=60_000,
    encoded_at_once=(128, 512),
    new_tokens=256,
    generated_at_once=(64, 256, 512),
    pairs=16,
    steps=4,
    layouts=((2, False), (8, False), (16, True)),
)
TINY = Shape(
    llm={
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "max_position_embeddings": 1024,
    },
    bert={
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
    },
    passages=500,
    encoded_at_once=(128,),
    new_tokens=16,
    generated_at_once=(32, 64),
    pairs=2,
    steps=3,
    layouts=((1, False), (2, True)),
)


def make_passages(count: int) -> list[str]:
    """Make passages as long as those of web search: about 80 tokens in the mean, some of 500."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnoprstuvw"))
    words = ["".join(rng.choice(letters, size)) for size in rng.integers(2, 9, 3000)]
    lengths = np.clip(rng.lognormal(4, 0.6, count), 5, 350).astype(int)
    return [" ".join(words[n] for n in rng.zipf(1.3, size) % len(words)) for size in lengths]


def make_llm(shape: Shape, device: str, passages: list[str], folder: Path) -> Path:
    """Write a Llama with random weights."""
    tokenizer = train_tokenizer([{"prompt": "", "text": text} for text in passages[:500]], 2000)
    config = LlamaConfig(**shape.llm, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_retriever(shape: Shape, passages: list[str], folder: Path) -> Path:
    """Write a retriever of BERT with random weights."""
    config = BertConfig(**shape.bert)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(passages[:500], 8000, ["[PAD]", "[UNK]"]),
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=config.max_position_embeddings,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    bert = Transformer(str(folder / "bert"))
    pooling = Pooling(config.hidden_size, "mean")
    SentenceTransformer(modules=[bert, pooling], device="cpu").save(str(folder / "retriever"))
    return folder / "retriever"


def forward_flops(config: Any, context: float) -> float:
    """Count the FLOPs of a token's forward pass: of the weights, and of attention to a context."""
    wide, deep = config.hidden_size, config.num_hidden_layers
    heads = config.num_attention_heads
    kept = wide // heads * getattr(config, "num_key_value_heads", heads)  # of a key, or a value
    attention = 2 * wide * wide + 2 * wide * kept
    matrices = 3 if isinstance(config, LlamaConfig) else 2  # of the feed-forward layer
    weights = deep * (attention + matrices * wide * config.intermediate_size)
    if isinstance(config, LlamaConfig):
        weights += wide * config.vocab_size
    return 2 * weights + 4 * deep * wide * context
