"""The baseline of `benchmarks.generation` in vLLM's interpreter: the reference's calls, and the peak.

    python -I benchmarks/generation_reference.py WORK.json

Loads the model exactly as `expandr_core/generation/vllm_program.py` does. Calls the engine as the
paper's code does (one pass per temperature, n = 8, batches of 256 prompts; one answer at a time; no
seeds), and once with all prompts in one call. Three choices favour the reference: prompts are token
ids, texts are not decoded, and the fastest run counts. Prints one JSON line with [texts, tokens,
seconds] for each.
"""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import LLM

BATCH = 256


def write(
    llm: "LLM", work: dict[str, Any], asked: list[tuple[list[int], float]], each: int
) -> tuple[int, int]:
    """Write `each` texts for each prompt and temperature by one call; count texts and tokens."""
    from vllm import SamplingParams

    sampling = [
        SamplingParams(
            n=each,
            temperature=temperature,
            top_p=work["top_p"],
            max_tokens=work["max_new_tokens"],
            stop_token_ids=work["ends"],
            detokenize=False,
        )
        for _, temperature in asked
    ]
    prompts = [{"prompt_token_ids": ids} for ids, _ in asked]
    made = llm.generate(prompts, sampling, use_tqdm=False)
    lengths = [len(text.token_ids) for request in made for text in request.outputs]
    return len(lengths), sum(lengths)


def main(path: str) -> None:
    """Measure candidates, answers and the peak."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work = json.loads(Path(path).read_text())
    spec = importlib.util.spec_from_file_location("vllm_program", work["program"])
    assert spec and spec.loader
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    llm = program.load(work["settings"])
    prompts, temperatures = work["candidates"], work["temperatures"]
    each = work["samples"] // len(temperatures)
    batches = [prompts[first : first + BATCH] for first in range(0, len(prompts), BATCH)]
    calls = {
        "candidates": [
            ([(ids, t) for ids in batch], each) for t in temperatures for batch in batches
        ],
        "answers": [([(ids, 1.0)], 1) for ids in work["answers"]],
        "peak": [([(ids, t) for t in temperatures for ids in prompts], each)],
    }
    write(llm, work, [(ids, 1.0) for ids in work["answers"][:8]], 4)  # to warm up
    measured = {}
    for name, asked in calls.items():
        runs = []
        for _ in range(work["runs"]):
            llm.reset_prefix_cache()
            started = time.monotonic()
            made = [write(llm, work, *call) for call in asked]
            seconds = time.monotonic() - started
            runs.append([*(sum(column) for column in zip(*made, strict=True)), seconds])
        measured[name] = max(runs, key=lambda run: run[1] / run[2])
    print(json.dumps(measured), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
