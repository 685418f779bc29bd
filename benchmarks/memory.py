"""Check that the peak memory of expand, reward and evaluate does not grow with the number of queries.

    python benchmarks/memory.py [--queries 1000 100000] [--folder FOLDER]

Each stage runs in its own process on synthetic queries, with a scripted generator (its words follow
from the seed) and a tiny static encoder. Prints the peaks and their ratio, and exits with 1 if a
ratio is outside 0.9 to 1.1.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.generation.engine import Completion, Request
from expandr_core.options.evaluation import RankingOptions
from expandr_core.options.generation import Prompt, PromptOptions, SamplingOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.runtime.job import Job, no_progress
from expandr_core.runtime.runner import make_spec
from expandr_core.stages import encode, evaluate, expand, reward
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store

WORDS = [
    f"{a}{b}" for a in ("ba", "de", "fi", "go", "lu", "ma") for b in ("ra", "ne", "ti", "so", "pu")
]
PASSAGES, CANDIDATES = 1000, 4
SAMPLING = SamplingOptions(samples=CANDIDATES, sampling_temperatures=(0.8, 1.1), max_new_tokens=24)
ONE = SamplingOptions(max_new_tokens=24)
STAGES = ("expand", "reward", "evaluate")


class ScriptedGenerator:
    """Write twenty words drawn by the seed of each text."""

    precision = ""

    def generate(
        self, requests: Sequence[Request], sampling: SamplingOptions, max_prompt_tokens: int
    ) -> Iterator[list[tuple[int, list[Completion]]]]:
        """Yield one request after the other."""
        for index, request in enumerate(requests):
            yield [(index, [Completion(words(seed), "stop", 20) for seed in request.seeds])]


def words(seed: int) -> str:
    """Twenty words drawn by a seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=20))


def main() -> int:
    """Build the inputs, measure each stage at each size, print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--queries", type=int, nargs=2, default=[1000, 100_000])
    parser.add_argument("--folder", help="where to work; a temporary folder by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        peaks: dict[tuple[str, int], int] = {}
        for queries in arguments.queries:
            for stage in ("inputs", *STAGES):
                started = time.monotonic()
                command = [sys.executable, __file__, "measure", stage, str(queries), folder]
                pool = {"ARROW_DEFAULT_MEMORY_POOL": "system"}  # as the command line sets it
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, env=os.environ | pool
                )
                if done.returncode:
                    print(done.stderr)
                    return 1
                peaks[stage, queries] = int(done.stdout.split()[-1])
                seconds = time.monotonic() - started
                measured = f"{peaks[stage, queries]:>7,} MB {seconds:6.0f} s"
                print(f"{stage:<10}{queries:>9,} queries {measured}", flush=True)
    few, many = arguments.queries
    flat = True
    for stage in STAGES:
        ratio = peaks[stage, many] / peaks[stage, few]
        flat &= 0.9 <= ratio <= 1.1
        print(f"{stage:<10}ratio {ratio:.2f}")
    return 0 if flat else 1


def measure(stage: str, queries: int, folder: str) -> None:
    """Run one stage in this process and print its peak memory in MB."""
    store = Store(str(Path(folder, str(queries))))
    if stage == "inputs":
        make_inputs(store, queries)
    else:
        {"expand": run_expand, "reward": run_reward, "evaluate": run_evaluate}[stage](store)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def find(store: Store, stage: str) -> list[Artifact]:
    """Return the artifacts of a stage."""
    keys = [key for key in store.keys(f"{stage}-") if key.rpartition("-")[0] == stage]
    return [artifact for key in keys if (artifact := store.lookup(key))]


def commit(store: Store, spec: StageSpec, job: Job) -> Artifact:
    """Make what a job has written an artifact."""
    return store.commit(spec.key, job.out, job.made_shards, {"counts": job.counts})


def job_for(store: Store, spec: StageSpec, options: object) -> Job:
    """Make a job by hand, as `run_stage` does."""
    with store.lock(spec.key) as work:
        for name in ("out", "checkpoints"):
            (work / name).mkdir(exist_ok=True)
    inputs = {role: store.local(artifact) for role, artifact in spec.inputs.items()}
    return Job(spec, options, inputs, work / "out", work / "checkpoints", store, no_progress)


def make_inputs(store: Store, queries: int) -> None:
    """Write queries with positives, judgements, a corpus and a retriever; encode the corpus."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    spec = StageSpec(stage="data", version=1)
    job = job_for(store, spec, None)
    passage_ids = [f"p{n}" for n in range(PASSAGES)]
    texts = [words(n) for n in range(PASSAGES)]
    empty = pa.array([""] * PASSAGES)
    corpus = pa.table({"passage_id": passage_ids, "title": empty, "text": texts})
    pq.write_table(corpus, job.out / "corpus.parquet")
    ids = pa.array([f"q{n:07d}" for n in range(queries)])
    of = [n % PASSAGES for n in range(queries)]
    asked = pa.array([f"what about {words(n)[:20]} number {n}" for n in range(queries)])
    positives = {"positive_id": [passage_ids[n] for n in of], "positive": [texts[n] for n in of]}
    table = pa.table({"query_id": ids, "query": asked, "cluster": ids, **positives})
    pq.write_table(table, job.out / "queries.parquet")
    relevance = pa.array([1] * queries, pa.int32())
    qrels = pa.table(
        {"query_id": ids, "passage_id": positives["positive_id"], "relevance": relevance}
    )
    pq.write_table(qrels, job.out / "qrels.parquet")
    data = commit(store, spec, job)

    spec = StageSpec(stage="retriever", version=1)
    job = job_for(store, spec, None)
    vocabulary = {word: n for n, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=32)]).save(str(job.out))
    retriever = commit(store, spec, job)

    options = encode.OPTIONS(encoding=EncodingOptions(max_tokens=64))
    inputs = {"corpus": data.at("corpus.parquet"), "retriever": retriever}
    spec = make_spec("encode", options, inputs, device="cpu")
    job = job_for(store, spec, options)
    encode.run(job)
    commit(store, spec, job)


def run_expand(store: Store) -> None:
    """Write the candidates, then the answers."""
    [data] = find(store, "data")
    asked: list[tuple[Prompt, SamplingOptions]] = [("q2d", SAMPLING), ("q2a", ONE)]
    for prompt, sampling in asked:
        options = expand.OPTIONS(
            prompt=PromptOptions(name=prompt, max_tokens=64),
            sampling=sampling,
            queries_per_shard=256,
        )
        spec = make_spec("expand", options, {"queries": data.at("queries.parquet"), "llm": data})
        job = job_for(store, spec, options)
        expand.expand(job, ScriptedGenerator)
        commit(store, spec, job)


def expansions(store: Store) -> tuple[Artifact, Artifact]:
    """Return the candidates and the answers."""
    answers, candidates = sorted(find(store, "expand"), key=lambda found: found.counts["texts"])
    return candidates, answers


def run_reward(store: Store) -> None:
    """Reward the candidates."""
    candidates, answers = expansions(store)
    [data], [retriever] = find(store, "data"), find(store, "retriever")
    options = reward.OPTIONS(encoding=EncodingOptions(max_tokens=64))
    examples = data.at("queries.parquet")
    inputs = {"candidates": candidates, "answers": answers, "examples": examples}
    spec = make_spec("reward", options, {**inputs, "retriever": retriever}, device="cpu")
    job = job_for(store, spec, options)
    reward.run(job)
    commit(store, spec, job)


def run_evaluate(store: Store) -> None:
    """Evaluate the answers as expansions of the queries."""
    _, answers = expansions(store)
    [data], [retriever] = find(store, "data"), find(store, "retriever")
    options = evaluate.OPTIONS(
        encoding=EncodingOptions(max_tokens=64),
        fusion=FusionOptions(),
        ranking=RankingOptions(depth=100),
    )
    inputs = {"retriever": retriever, "embeddings": find(store, "encode")[0], "expansions": answers}
    inputs |= {"queries": data.at("queries.parquet"), "qrels": data.at("qrels.parquet")}
    spec = make_spec("evaluate", options, inputs, device="cpu")
    job = job_for(store, spec, options)
    evaluate.run(job)
    commit(store, spec, job)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        sys.exit(main())
