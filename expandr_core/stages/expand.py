"""Expand: the language model writes texts for each query, shard by shard.

It writes candidates and expansions (q2d and similar prompts) and the self-reward's answers (q2a), which
are the only texts that are written with the positive passage in view.
Unlike in the paper's code, prompts are token ids, every text has its own seed, lead-ins are removed
here and nowhere else, rows keep `finish_reason`, and rows have ids.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.errors import DataError
from expandr_core.generation.engine import (
    Generator,
    LLMSpec,
    Request,
    causes_of_empty_texts,
    open_engine,
)
from expandr_core.generation.prompts import remove_preamble
from expandr_core.options.base import Options, added, runtime
from expandr_core.options.generation import (
    ChatOptions,
    Engine,
    EngineOptions,
    Precision,
    Prompt,
    PromptOptions,
    QueriesPerShard,
    SamplingOptions,
    TransformersOptions,
)
from expandr_core.options.loop import JointLoopOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.records import EXPANSIONS
from expandr_core.runtime.job import Job
from expandr_core.runtime.runner import run_shard
from expandr_core.runtime.shards import query_shards, rows_digest, shard_count, shard_sizes
from expandr_core.seeding import derive_seed

log = logging.getLogger(__name__)
VERSION = 5
ROLE = "generate"
ISOLATION = "on-gpu"
ONLY_EMPTY = 64  # a shard with at least this many texts, all of them empty, ends the stage
MANY_EMPTY = 0.05  # share of empty texts that is worth a warning


class ExpandOptions(Options):
    """What to write for each query, how many texts, and by which engine."""

    prompt: PromptOptions
    sampling: SamplingOptions
    queries_per_shard: QueriesPerShard
    engine: Engine = "transformers"
    settings: EngineOptions = TransformersOptions()
    precision: Precision = added("auto")
    chat: ChatOptions = ChatOptions()
    hides_positive: bool = added(False)  # from q2a, where the answer is to be an expansion
    may_be_empty: bool = runtime(False)  # all texts, and that is only warned of

    @classmethod
    def of(
        cls,
        options: JointLoopOptions,
        sampling: SamplingOptions,
        prompt: Prompt | None,
        chat: ChatOptions,
    ) -> Self:
        """Write with the language model of the loop; without a prompt, by that of the options."""
        asked = options.expand.prompt
        return cls(
            prompt=PromptOptions(name=prompt, max_tokens=asked.max_tokens) if prompt else asked,
            sampling=sampling,
            queries_per_shard=options.expand.queries_per_shard,
            engine=options.llm.engine,
            settings=options.llm.settings,
            precision=options.llm.precision,
            chat=chat,
            hides_positive=prompt is None and asked.name == "q2a",
        )


OPTIONS = ExpandOptions
BYTES_GROW_WITH = "tokens"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the prompts to read, and the tokens to write."""
    return {"prompts": step.counts["queries"], "tokens": step.counts["tokens"]}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict queries, texts and tokens."""
    options: ExpandOptions = step.options
    sizes = shard_sizes(step.store.local(step.inputs["queries"]), options.queries_per_shard)
    queries = sum(sizes[: step.max_shards or len(sizes)])
    texts = queries * options.sampling.samples
    tokens = texts * step.texts.tokens(options.prompt.name, options.sampling.max_new_tokens)
    return {"queries": queries, "texts": texts, "tokens": tokens}


def shards(job: Job) -> int:
    """Count the shards of `queries`."""
    options: ExpandOptions = job.options
    return shard_count(job.inputs["queries"], options.queries_per_shard)


def run(job: Job) -> None:
    """Write the expansions of `queries` with the model `llm`; load it only if a shard is missing."""
    with ExitStack() as engines:
        expand(job, cache(lambda: engines.enter_context(_open_engine(job))))


def _open_engine(job: Job) -> AbstractContextManager[Generator]:
    options: ExpandOptions = job.options
    llm = LLMSpec(
        job.inputs["llm"],
        job.spec.runtime.get("device", "auto"),
        job.inputs.get("adapter"),
        options.chat,
        max_tokens=options.prompt.max_tokens + options.sampling.max_new_tokens,
        precision=options.precision,
        vllm_python=job.spec.runtime.get("vllm_python", ""),
    )
    return open_engine(llm, options.settings)


def expand(job: Job, load: Callable[[], Generator]) -> None:
    """Write all missing shards with the engine that `load` returns."""
    options: ExpandOptions = job.options
    counts: Counter[str] = Counter()
    per_shard, columns = options.queries_per_shard, ["query", "positive"]
    sizes = shard_sizes(job.inputs["queries"], per_shard)
    samples = options.sampling.samples
    total = samples * sum(size for number, size in enumerate(sizes) if job.includes(number))
    folder = job.out.parent
    for number, rows in query_shards(job.inputs["queries"], per_shard, columns, job.takes, folder):

        def report(texts: int, done: int = samples * sum(sizes[:number])) -> None:
            job.progress(done + texts, total, "texts")

        def write(out: Path, rows: pa.Table = rows) -> dict[str, float]:
            engine = load()
            report(0)
            written = _write_shard(job, rows, engine, out, report)
            if written["empty"] == written["texts"] >= ONLY_EMPTY and not options.may_be_empty:
                raise _only_empty(options, written)
            return written

        shard = run_shard(job, number, {"queries": rows_digest(rows)}, write)
        counts.update(shard.counts)
    only_empty = 0 < counts["texts"] == counts["empty"] and not options.may_be_empty
    if only_empty and not job.claims:
        for shard in job.made_shards:  # or they would be reused even after the cause is mended
            job.store.remove(shard.key)
        raise _only_empty(options, counts)
    job.progress(total, total, "texts")
    job.counts.update(counts)
    if job.spec.max_shards and not job.claims:
        _count_left_out(job)
    log.info(
        "%d texts for %d queries: %d empty, %d duplicate, %d cut at max_new_tokens",
        *(counts[name] for name in ("texts", "queries", "empty", "duplicate", "truncated")),
    )
    if warning := empty_warning(counts):
        log.warning("%s", warning)


def _only_empty(options: ExpandOptions, counts: Mapping[str, float]) -> DataError:
    """Return the error that the model wrote nothing, with the likely causes."""
    causes = [
        *causes_of_empty_texts(options.settings),
        f"the model only thinks, and max_new_tokens ({options.sampling.max_new_tokens}) ends before "
        "it answers (raise it, or switch thinking off if the chat template can, for example by "
        "llm.template.enable_thinking=false)",
        "its weights are broken, so that it ends every turn at once (try another model, or download "
        "it again)",
    ]
    return DataError(
        f"all {counts['texts']:.0f} texts that the language model wrote for the prompt "
        f"{options.prompt.name!r} are empty, and none is kept; likely causes: "
        + "; or ".join(causes)
    )


def empty_warning(counts: Mapping[str, float]) -> str:
    """Return a warning about the empty texts that an expand stage counted, or "" if they are few.

    >>> empty_warning({"texts": 200, "empty": 50})
    '50 of 200 texts (25 %) are empty'
    >>> empty_warning({"texts": 200, "empty": 1})
    ''
    """
    texts, empty = counts.get("texts", 0), counts.get("empty", 0)
    if not texts or empty / texts < MANY_EMPTY:
        return ""
    return f"{empty:.0f} of {texts:.0f} texts ({100 * empty / texts:.0f} %) are empty"


def _count_left_out(job: Job) -> None:
    """Count the queries beyond `max_shards`, and the texts that were not written for them."""
    options: ExpandOptions = job.options
    sizes = shard_sizes(job.inputs["queries"], options.queries_per_shard)
    queries = sum(sizes[job.spec.max_shards :])
    texts = queries * options.sampling.samples
    job.counts |= {"left_out/queries": queries, "left_out/texts": texts}
    log.info(
        "the first %d of %d shards: %d queries are left out, and %d texts not written",
        *(job.spec.max_shards, len(sizes), queries, texts),
    )


def _write_shard(
    job: Job, rows: pa.Table, generator: Generator, out: Path, report: Callable[[int], None]
) -> dict[str, float]:
    """Generate the texts of one shard; write them sorted by (query_id, sample); count them."""
    options: ExpandOptions = job.options
    sampling, prompt = options.sampling, options.prompt
    repeats = sampling.samples // len(sampling.sampling_temperatures)
    temperatures = tuple(t for t in sampling.sampling_temperatures for _ in range(repeats))
    queries = rows.to_pylist()
    shown = prompt.name == "q2a" and not options.hides_positive
    requests = [
        Request(
            prompt=prompt,
            query=row["query"],
            passage=row["positive"] if shown else "",
            seeds=tuple(
                derive_seed("expand", job.seed, prompt.name, row["query_id"], sample)
                for sample in range(sampling.samples)
            ),
            sampling_temperatures=temperatures,
        )
        for row in queries
    ]
    written: dict[int, list[dict[str, object]]] = {}
    counts: Counter[str] = Counter(queries=len(queries), texts=len(queries) * sampling.samples)
    for batch in generator.generate(requests, sampling, prompt.max_tokens):
        for index, completions in batch:
            texts = [remove_preamble(completion.text, prompt.name) for completion in completions]
            counts["empty"] += texts.count("")
            counts["duplicate"] += len(texts) - len(set(texts))
            counts["truncated"] += sum(c.finish_reason == "length" for c in completions)
            counts["tokens"] += sum(c.tokens for c in completions)
            if thoughts := sum(c.thoughts for c in completions):
                counts["thoughts"] += thoughts
            written[index] = [
                {
                    "query_id": queries[index]["query_id"],
                    "sample": sample,
                    "sampling_temperature": temperatures[sample],
                    "text": text,
                    "finish_reason": completion.finish_reason,
                    "tokens": completion.tokens,
                }
                for sample, (text, completion) in enumerate(zip(texts, completions, strict=True))
            ]
        report(len(written) * sampling.samples)
    if generator.precision == "bfloat16":
        counts["bfloat16_texts"] = counts["texts"]
    table = pa.Table.from_pylist(
        [row for index in range(len(queries)) for row in written[index]], schema=EXPANSIONS
    )
    pq.write_table(table, out / "expansions.parquet", compression="zstd")
    return dict(counts)
