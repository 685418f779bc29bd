"""Measure the heavy stages on a GPU, as rates and shares of its peak: Llama-3-8B's shape, BERT-base.

    python -m benchmarks.gpu [encoding] [transformers] [vllm] [dpo] [--shape full]

encoding      passages encoded by our encoder in bfloat16, and by sentence-transformers' own `encode`
transformers  texts by the transformers engine, 32 per query; none ends early
vllm          the same by vLLM, if it is installed (`make vllm-env`)
dpo           DPO steps on pairs of 612 tokens, after the reference model's pass

All weights are random. Shares refer to the datasheet's dense bfloat16 FLOP/s or memory bandwidth; for
a GPU that is not listed, to what a large matrix product and a copy reach on it. Those two are
measured on every GPU. FLOPs count only the products that the result needs: a forward pass takes two
per weight and token, DPO of an adapter twice that, because frozen weights have no gradient. What
gradient checkpointing recomputes does not count. `--shape tiny` runs everything on a CPU as a check.
"""

import argparse
import gc
import importlib.metadata
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import LlamaConfig

from benchmarks.gpu_models import (
    FULL,
    TINY,
    Shape,
    forward_flops,
    make_llm,
    make_passages,
    make_retriever,
)
from expandr_core.encoders.encode import Encoder
from expandr_core.generation import vllm_engine
from expandr_core.generation.engine import Generator, LLMSpec, Request, open_engine
from expandr_core.generation.transformers_engine import TransformersGenerator
from expandr_core.options.generation import SamplingOptions, VLLMOptions
from expandr_core.options.retriever import EncodingOptions
from expandr_core.options.training import DPOTrainingOptions
from expandr_core.training import alignment as training

PEAKS = {  # FLOP/s in bfloat16, dense; bytes/s
    "H100 80GB HBM3": (989e12, 3.35e12),
    "H200": (989e12, 4.8e12),
    "A100-SXM4-80GB": (312e12, 2.04e12),
}
PROMPT_TOKENS, TEXT_TOKENS = 100, 512  # of a pair: 612 together
SAMPLES = 32


@dataclass(frozen=True)
class Chip:
    """Where it runs, and its peak."""

    device: str
    flops: float
    bandwidth: float

    def shares(self, flops: float, bytes_: float | None = None) -> str:
        """Show the shares of the peak that FLOP/s and bytes/s are."""
        text = f"{flops / self.flops:7.1%} of peak FLOP/s"
        return text if bytes_ is None else f"{text}, {bytes_ / self.bandwidth:.1%} of bandwidth"


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long something takes, on the GPU too."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
    started = time.monotonic()
    work()
    if gpu:
        torch.cuda.synchronize()
    return time.monotonic() - started


def give_memory_back() -> None:
    """Leave the GPU's memory to others: models that are gone still hold it."""
    gc.collect()
    torch.cuda.empty_cache()


def look_at_chip() -> Chip:
    """Name the chip, and measure a large product and a copy."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    size, repeats = (8192, 20) if device == "cuda" else (512, 2)
    square = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    block = torch.empty(2**30 if device == "cuda" else 2**24, device=device, dtype=torch.uint8)
    twin = torch.empty_like(block)
    _, _ = square @ square, twin.copy_(block)
    product = seconds_of(lambda: [square @ square for _ in range(repeats)])
    copy = seconds_of(lambda: [twin.copy_(block) for _ in range(repeats)])
    flops, bandwidth = 2 * size**3 * repeats / product, 2 * len(block) * repeats / copy
    versions = ", ".join(
        f"{each} {importlib.metadata.version(each)}"
        for each in ("torch", "transformers", "trl", "sentence-transformers")
    )
    print(f"{name}; {versions}")
    print(
        f"a {size:,} x {size:,} product: {flops / 1e12:.0f} TFLOP/s; a copy: {bandwidth / 1e12:.2f} TB/s"
    )
    listed = next((peak for part, peak in PEAKS.items() if name.endswith(part)), None)
    print(f"peak: {'the datasheet' if listed else 'what was measured'}", flush=True)
    return Chip(device, *(listed or (flops, bandwidth)))


def measure_encoding(shape: Shape, chip: Chip, folder: Path) -> None:
    """Encode passages with our encoder, and with the library's own `encode`."""
    passages = make_passages(shape.passages)
    retriever = make_retriever(shape, passages, folder)
    theirs = SentenceTransformer(
        str(retriever), device=chip.device, model_kwargs={"dtype": torch.bfloat16}
    )
    lengths = np.array([len(ids) for ids in theirs.tokenizer(passages)["input_ids"]])
    lengths = np.minimum(lengths, 512)
    bert: Any = theirs[0]
    flops = sum(forward_flops(bert.auto_model.config, n) * n for n in lengths.tolist())
    print(f"encoding: {len(passages):,} passages, {lengths.mean():.0f} tokens in the mean")
    for size in shape.encoded_at_once:
        options = EncodingOptions(precision="bfloat16", batch_size=size)
        encoder = Encoder(retriever, chip.device, options)
        arms: dict[str, Callable[[list[str]], object]] = {
            "ours": encoder.encode_passages,
            "theirs": lambda texts, size=size: theirs.encode_document(texts, batch_size=size),
        }
        rates = {}
        for name, encode in arms.items():
            encode(passages[: 8 * size])
            seconds = seconds_of(lambda encode=encode: encode(passages))
            rates[name] = lengths.sum() / seconds
            print(
                f"  {name + f', {size} at once':<34}{rates[name]:>12,.0f} tokens/s"
                f"{chip.shares(flops / seconds)}",
                flush=True,
            )
        print(f"  {rates['ours'] / rates['theirs']:.2f} times as fast as sentence-transformers")


def measure_generation(
    name: str, engine: Generator, config: Any, shape: Shape, chip: Chip, texts: int
) -> None:
    """Write texts, 32 for each query, all at once."""
    sampling = SamplingOptions(samples=SAMPLES, max_new_tokens=shape.new_tokens)
    temperatures = (0.8, 0.9, 1.0, 1.1) * (SAMPLES // 4)
    requests = [
        Request(
            "q2d",
            f"which {text[:40]}",
            "",
            tuple(range(SAMPLES * number, SAMPLES * (number + 1))),
            temperatures,
        )
        for number, text in enumerate(make_passages(texts // SAMPLES))
    ]
    few = sampling.model_copy(update={"max_new_tokens": 4})
    list(engine.generate(requests, few, 512))  # to load and warm up
    tokens = 0

    def write() -> None:
        nonlocal tokens
        batches = engine.generate(requests, sampling, 512)
        tokens = sum(text.tokens for batch in batches for _, texts in batch for text in texts)

    seconds = seconds_of(write)
    context = PROMPT_TOKENS + shape.new_tokens / 2
    weights = forward_flops(config, 0)  # two bytes and two FLOPs each
    kept = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    cache = 4 * config.num_hidden_layers * kept * context  # keys and values of a text's context
    read = tokens / texts * weights + tokens * cache
    print(
        f"  {f'{name}, {texts} at once':<34}{tokens / seconds:>12,.0f} tokens/s"
        f"{chip.shares(tokens * forward_flops(config, context) / seconds, read / seconds)}",
        flush=True,
    )


def measure_transformers(shape: Shape, chip: Chip, llm: Path) -> None:
    """Write texts with the engine transformers."""
    engine = TransformersGenerator(llm, chip.device)
    for texts in shape.generated_at_once:
        engine.batch_size = texts
        measure_generation("transformers", engine, engine.model.config, shape, chip, texts)


def measure_vllm(shape: Shape, chip: Chip, llm: Path) -> None:
    """Write texts with vLLM, if there is an interpreter for it."""
    python = os.environ.get("EXPANDR_VLLM_PYTHON") or str(vllm_engine.DEFAULT_PYTHON)
    if not Path(python).is_file():
        print("  vLLM: not installed here")
        return
    options, longest = VLLMOptions(), 512 + shape.new_tokens
    device: Any = chip.device
    config = LlamaConfig.from_pretrained(llm)
    give_memory_back()
    with open_engine(
        LLMSpec(llm, device, max_tokens=longest, vllm_python=python), options
    ) as engine:
        measure_generation("vLLM", engine, config, shape, chip, max(shape.generated_at_once))


def measure_dpo(shape: Shape, chip: Chip, llm: Path, folder: Path) -> None:
    """Train on pairs whose prompt has 100 tokens and either text 512."""
    rng = np.random.default_rng(0)
    sizes = {"prompt_ids": PROMPT_TOKENS, "chosen_ids": TEXT_TOKENS, "rejected_ids": TEXT_TOKENS}
    rows = [
        {
            name: rng.integers(5, shape.llm["vocab_size"], size).tolist()
            for name, size in sizes.items()
        }
        for _ in range(shape.pairs * shape.steps)
    ]
    training.save_rows({"train": rows}, folder / "pairs")
    length = PROMPT_TOKENS + TEXT_TOKENS
    flops = 2 * length * 2 * forward_flops(LlamaConfig.from_pretrained(llm), length / 2)
    kernels = "Liger's kernels" if training.is_liger_kernel_available() else "no Liger kernels"
    print(f"DPO: {len(rows)} pairs of {length} tokens, {shape.pairs} a step; {kernels}")
    for number, (at_once, checkpointing) in enumerate(shape.layouts):
        options = DPOTrainingOptions(
            batch_size=shape.pairs,
            device_batch_size=at_once,
            gradient_checkpointing=checkpointing,
            epochs=1,
        )
        own = folder / str(number)
        task = training.AlignmentTask(
            "dpo", llm, None, folder / "pairs", own, None, own / "events", own / "out", options, 0
        )
        name = f"{at_once} at once, {'' if checkpointing else 'no '}checkpointing"
        ends: list[float] = []
        started = time.monotonic()
        try:
            training.train(task, chip.device, lambda *_, ends=ends: ends.append(time.monotonic()))  # pyrefly: ignore[missing-attribute]
        except RuntimeError as error:
            print(f"  {name:<34}{error}")
            continue
        finally:
            give_memory_back()
        rate = shape.pairs * (len(ends) - 2) / (ends[-1] - ends[1])
        print(
            f"  {name:<34}{rate:>12.2f} pairs/s {chip.shares(rate * flops)}"
            f"; loading and the reference's pass {ends[0] - started:.0f} s{_most_memory()}",
            flush=True,
        )


def _most_memory() -> str:
    """Tell how much memory of the GPU was in use at most, since this was asked last."""
    if not torch.cuda.is_available():
        return ""
    most = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return f", {most:.0f} GiB"


def main() -> None:
    """Measure what is named."""
    parts = ("encoding", "transformers", "vllm", "dpo")
    shapes = {"full": FULL, "tiny": TINY}
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; default: all"
    )
    parser.add_argument("--shape", choices=shapes, default="full")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    wanted, shape = arguments.parts or parts, shapes[arguments.shape]
    if shape is FULL and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --shape tiny shows on a CPU that the benchmark runs")
    chip = look_at_chip()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "encoding" in wanted:
            measure_encoding(shape, chip, folder)
        if set(wanted) == {"encoding"}:
            return
        llm = make_llm(shape, chip.device, make_passages(500), folder / "llm")
        gigabytes = sum(path.stat().st_size for path in llm.iterdir()) / 1e9
        print(f"an LLM of {gigabytes:.1f} GB; generation: texts of {shape.new_tokens} tokens")
        if "transformers" in wanted:
            measure_transformers(shape, chip, llm)
        if "vllm" in wanted:
            measure_vllm(shape, chip, llm)
        if "dpo" in wanted:
            measure_dpo(shape, chip, llm, folder / "dpo")


if __name__ == "__main__":
    main()
