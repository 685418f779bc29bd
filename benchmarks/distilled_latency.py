"""How long one query takes with the LLM, and how long with the distilled query encoder instead.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.distilled_latency STORE [--run NAME] [--queries 40]

Without that setting, waiting threads keep a core busy: beside other programs a search takes 40 ms.
STORE has a finished run with `distil.enabled`. Models and index are loaded once; then the same test
queries are searched one by one, ten passages deep, first by one way and then by the other, and once more
the other way round. Fails if the distilled encoder is not at least 20 times as fast by the median.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from expandr_core.encoders.encode import Encoder, Vectors, encode_expanded
from expandr_core.generation.adapters import language_model
from expandr_core.generation.chat_templates import chat_options, template_of
from expandr_core.generation.engine import Request
from expandr_core.generation.prompts import remove_preamble
from expandr_core.generation.transformers_engine import TransformersGenerator
from expandr_core.options.retriever import FusionOptions
from expandr_core.retrieval.exact import search
from expandr_core.retrieval.index import Index, open_index
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import Step
from expandr_core.store.store import Store
from flows.run_record import RunRecord, loop_run

WANTED, DEPTH, WARM = 20, 10, 3
Way = Callable[[str], Vectors]


def fused_way(store: Store, run: RunRecord, retriever: Path) -> Way:
    """Write expansions, one query at a time, and encode them with the query."""
    options, llm = run.options.expand, run.options.llm
    parts = language_model(store, run.models["llm"])
    paths = {role: store.local(part) for role, part in parts.items()}
    chat = chat_options(template_of(paths["llm"]), llm.template, llm.date)
    adapter = paths.get("adapter")
    generator = TransformersGenerator(paths["llm"], "cpu", adapter, chat, precision=llm.precision)
    encoder = Encoder(retriever, "cpu", run.options.measured_retriever.encoding)
    sampling = options.expansion
    temperatures = sampling.sampling_temperatures * (
        sampling.samples // len(sampling.sampling_temperatures)
    )

    def encode(query: str) -> Vectors:
        request = Request(options.prompt, query, "", tuple(range(sampling.samples)), temperatures)
        batches = generator.generate([request], sampling, options.prompt.max_tokens)
        [[(_, completions)]] = list(batches)
        texts = [remove_preamble(each.text, options.prompt.name) for each in completions]
        written = [text for text in texts if text]
        return encode_expanded(encoder, [query], [written], run.options.retriever.fusion)

    return encode


def distilled_way(run: RunRecord, student: Path) -> Way:
    """Encode the query alone."""
    encoder = Encoder(student, "cpu", run.options.measured_retriever.encoding)
    alone = FusionOptions(expansion_weight=0)
    return lambda query: encode_expanded(encoder, [query], [[]], alone)


def seconds(way: Way, index: Index, queries: list[str]) -> list[float]:
    """Search for one query after the other; return how long each took."""
    taken = []
    for number, query in enumerate([*queries[:WARM], *queries]):
        start = time.perf_counter()
        search(pa.array(["q"]), way(query), index, DEPTH, memory_gb=1.0)
        if number >= WARM:
            taken.append(time.perf_counter() - start)
    return taken


def step_of(run: RunRecord, stage: str, name: str = "") -> Artifact:
    """Return what the best round's step of a stage has made."""
    steps: list[Step] = run.steps
    return next(
        step.artifact
        for step in reversed(steps)
        if step.id.stage == stage and step.id.name.startswith(name)
    )


def main() -> None:
    """Compare, in both orders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("--run", default="latest")
    parser.add_argument("--queries", type=int, default=40)
    given = parser.parse_args()
    torch.set_num_threads(2)
    store = Store(given.store)
    run = loop_run(store, given.run)
    evaluation = step_of(run, "evaluate", "test/distilled")
    made_from = {
        role: Artifact(**each) for role, each in store.manifest(evaluation.key)["inputs"].items()
    }
    index = open_index(store.local(part) for part in store.shards(made_from["embeddings"]))
    table = pq.read_table(store.local(made_from["queries"]), columns=["query"])
    queries = table["query"].to_pylist()[: given.queries]
    ways = {
        "fused": fused_way(store, run, store.local(run.models["retriever"])),
        "distilled": distilled_way(run, store.local(made_from["retriever"])),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for name in (*ways, *reversed(ways)):
        taken[name] += seconds(ways[name], index, queries)
    found = {f"{name}_ms": 1000 * statistics.median(each) for name, each in taken.items()}
    ratio = found["fused_ms"] / found["distilled_ms"]
    print(json.dumps(found | {"ratio": ratio, "queries": len(queries)}))
    if ratio < WANTED:
        raise SystemExit(f"only {ratio:.1f} times as fast, not {WANTED}")


if __name__ == "__main__":
    main()
