"""The sides of `benchmarks.generation_gemma`, each by the Python and the tree that it belongs to.

    python benchmarks/generation_sides.py ours|former|library|vllm WORK.json

ours      the engine transformers of this tree
former    that of 6b5fd78, whose modules have other names
library   transformers' own `generate` with `num_return_sequences`, in batches of 64 texts
vllm      vLLM's CPU build in its own Python: all prompts in one call, no seeds, prefix caching

WORK.json has the model's folder, queries and their prompts as token ids, the temperatures of the texts
of each query, top_p, the longest text, the tokens that end one, and the precision. Every side computes
one batch to warm up. Prints the seconds that the wanted number of tokens takes at its speed, and the
tokens a second.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Work = dict[str, Any]
Writer = Callable[[slice], int]  # writes the texts of some queries, and counts their tokens


def ours(work: Work) -> Writer:
    """Open this tree's engine."""
    from expandr_core.generation.engine import Request
    from expandr_core.generation.transformers_engine import TransformersGenerator
    from expandr_core.options.generation import SamplingOptions

    engine = TransformersGenerator(Path(work["model"]), "cpu", precision=work["precision"])
    sampling = SamplingOptions(top_p=work["top_p"], max_new_tokens=work["max_new_tokens"])
    return requests_of(work, Request, engine, sampling)


def former(work: Work) -> Writer:
    """Open the engine of 6b5fd78, which writes in float32."""
    from expandr_core import generator  # pyrefly: ignore[missing-module-attribute]

    engine = generator.TransformersGenerator(Path(work["model"]), "cpu")
    sampling = generator.SamplingOptions(
        top_p=work["top_p"], max_new_tokens=work["max_new_tokens"], batch_size=64
    )
    return requests_of(work, generator.Request, engine, sampling)


def requests_of(work: Work, request: Any, engine: Any, sampling: Any) -> Writer:
    """Return a function that asks one of our engines."""
    each = len(work["temperatures"])
    requests = [
        request("q2d", query, "", tuple(range(each * n, each * n + each)), work["temperatures"])
        for n, query in enumerate(work["queries"])
    ]

    def write(part: slice) -> int:
        batches = engine.generate(requests[part], sampling, work["max_prompt_tokens"])
        texts = [text for batch in batches for _, own in batch for text in own]
        return sum(text.tokens + (text.finish_reason == "stop") for text in texts)

    return write


def library(work: Work) -> Writer:
    """Open transformers; the prompts of a batch are padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        work["model"], dtype=getattr(torch, work["precision"]), trust_remote_code=False
    ).eval()
    each = len(work["temperatures"])

    @torch.inference_mode()
    def write(part: slice) -> int:
        prompts, tokens = work["prompts"][part], 0
        for first in range(0, len(prompts), 64 // each):
            batch = prompts[first : first + 64 // each]
            longest = max(map(len, batch))
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
            mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                num_return_sequences=each,
                temperature=work["temperatures"][0],
                top_p=work["top_p"],
                top_k=None,
                max_new_tokens=work["max_new_tokens"],
                eos_token_id=work["ends"],
                pad_token_id=0,
            )
            ends = torch.isin(output[:, longest:], torch.tensor(work["ends"]))
            before = ends.cumsum(1) - ends.long()
            tokens += int((before == 0).sum())
        return tokens

    return write


def vllm(work: Work) -> Writer:
    """Open vLLM as the product does."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=work["model"],
        skip_tokenizer_init=True,
        trust_remote_code=False,
        generation_config="vllm",
        dtype=work["precision"],
        max_model_len=work["max_prompt_tokens"] + work["max_new_tokens"],
        enforce_eager=True,
        block_size=32,
        kv_cache_memory_bytes=2**30,
        enable_chunked_prefill=False,
        max_num_batched_tokens=4096,
        enable_prefix_caching=True,
    )
    sampling = SamplingParams(
        n=len(work["temperatures"]),
        temperature=work["temperatures"][0],
        top_p=work["top_p"],
        max_tokens=work["max_new_tokens"],
        stop_token_ids=work["ends"],
        detokenize=False,
    )

    def write(part: slice) -> int:
        prompts = [{"prompt_token_ids": prompt} for prompt in work["prompts"][part]]
        made = llm.generate(prompts, sampling, use_tqdm=False)
        return sum(len(text.token_ids) for request in made for text in request.outputs)

    return write


def main(side: str, path: str) -> None:
    """Measure one side."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    work = json.loads(Path(path).read_text())
    sides = {"ours": ours, "former": former, "library": library, "vllm": vllm}
    write = sides[side](work)
    write(slice(0, 64 // len(work["temperatures"])))
    measured = slice(0, work["measured"][side])
    started = time.monotonic()
    tokens = write(measured)
    rate = tokens / (time.monotonic() - started)
    wanted = len(work["queries"]) * len(work["temperatures"]) * work["max_new_tokens"]
    result = {"seconds": wanted / rate, "tokens": tokens, "tokens_per_second": rate}
    print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
