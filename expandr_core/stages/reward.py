"""Reward: what each query's candidates are worth to the encoder that rewards.

Its shards are those of the candidates: rewards.parquet, a row a candidate, sorted by (query_id, sample).
Candidates, positives and answers of a shard are encoded together, each distinct text once. Similarities
that differ by no more than the encoder's rounding are equal. Empty and repeated candidates of a query
are dropped first and counted. Rows are joined by id; a missing answer or candidate is an error.

Inputs: `candidates`, `examples`, `retriever` (the encoder that rewards), `answers` if the self-reward
has a weight, and for a reward by ranks `embeddings`: the corpus as `encode` wrote it with that encoder.
The corpus is read once for several shards, as many as a quarter of `search_memory_gb` holds.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.encoders.encode import Encoder, Vectors, encoder_of
from expandr_core.errors import DataError
from expandr_core.options.base import Options, added, runtime
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.preferences import Reward
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.preferences.candidates import Encoded, Measures, Row, Written, encode, judge
from expandr_core.preferences.rewards import MEASURED, names, schema
from expandr_core.runtime.job import Job
from expandr_core.runtime.memory import search_memory
from expandr_core.runtime.runner import run_shard
from expandr_core.runtime.shards import Buckets, one_row_a_query, rows_digest, shard_count
from expandr_core.store.artifacts import Artifact

if TYPE_CHECKING:
    from expandr_core.evaluation.positive_ranks import Corpus

log = logging.getLogger(__name__)
VERSION = 7
ROLE = "embed"
ISOLATION = "on-gpu"
EXAMPLES_AT_ONCE = 256  # queries, about
MOST_GROUPS = 16  # of parts that are claimed together, or the last would be alone with many


class RewardOptions(Options):
    """What a candidate is rewarded for, and how texts become vectors: the same as in retrieval."""

    encoding: EncodingOptions
    reward: Reward = added("candidate_rank")
    k: int = added(0)  # ranks that count for ndcg_delta
    retriever_weight: float = added(1.0)
    self_weight: float = added(1.0)
    beats_query: bool = added(False)  # whether candidate_rank measures retrieval, too
    fusion: FusionOptions = added(FusionOptions())
    search_memory_gb: float = runtime(0.0)

    @classmethod
    def of(cls, options: JointLoopOptions) -> Self:
        """Reward as the preferences say, by the encoder that rewards."""
        chosen, encoder = options.preferences, options.rewarding
        return cls(
            encoding=encoder.encoding,
            reward=chosen.reward,
            k=chosen.reward_k if chosen.reward == "ndcg_delta" else 0,
            retriever_weight=chosen.retriever_weight,
            self_weight=chosen.self_weight,
            beats_query=chosen.beats_query and chosen.reward == "candidate_rank",
            fusion=encoder.fusion if chosen.measures_retrieval else FusionOptions(),
            search_memory_gb=encoder.index.search_memory_gb,
        )

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the components."""
        return {"retriever": self.retriever_weight, "self": self.self_weight}

    @property
    def measured(self) -> bool:
        """Whether retrieval is measured, with each candidate and by the query alone."""
        return self.reward != "candidate_rank" or self.beats_query

    @property
    def ranked(self) -> bool:
        """Whether it is measured in the corpus."""
        return self.reward in ("corpus_rank", "ndcg_delta")


OPTIONS = RewardOptions
BYTES_GROW_WITH = "candidates"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the candidates to encode, and the similarities to compute."""
    candidates = step.counts["candidates"]
    embeddings, vectors = step.inputs.get("embeddings"), candidates + step.counts["queries"]
    passages = embeddings.counts["passages"] if embeddings else 0
    return {"candidates": candidates, "similarities": vectors * passages}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every text is a candidate."""
    written = step.inputs["candidates"].counts
    return {"queries": written["queries"], "candidates": written["texts"]}


def shards(job: Job) -> int:
    """Count the shards of the candidates.

    Raises:
        DataError: if the answers are cut into another number of shards.
    """
    return len(_parts(job))


class Part(NamedTuple):
    """A shard's part of the inputs."""

    number: int
    candidates: Artifact
    answers: Artifact | None


def _parts(job: Job) -> list[Part]:
    candidates = job.store.shards(job.spec.inputs["candidates"])
    if not job.options.self_weight:
        return [Part(number, each, None) for number, each in enumerate(candidates)]
    if "answers" not in job.spec.inputs:
        raise DataError(
            "the self-reward needs answers; write them for the same queries, or set "
            "preferences.self_weight to 0"
        )
    answers = job.store.shards(job.spec.inputs["answers"])
    if len(candidates) != len(answers):
        raise DataError(
            f"candidates have {len(candidates)} shards and answers {len(answers)}; write both for the "
            "same queries with the same queries_per_shard"
        )
    return [Part(n, *both) for n, both in enumerate(zip(candidates, answers, strict=True))]


def run(job: Job) -> None:
    """Reward each shard of the candidates that is not there yet."""
    options: RewardOptions = job.options
    parts = _parts(job)
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as held:

        @cache
        def encoder() -> Encoder:  # load it if a shard is missing
            loaded = encoder_of(job, options.encoding)
            job.progress(len(job.made_shards), len(parts), "shards")
            return loaded

        corpus = cache(lambda: _open_corpus(job, held, encoder()))
        examples = cache(lambda: _cut(job))
        for group in _groups(job, parts):
            for shard in _run_group(job, group, encoder, corpus, examples):
                counts.update(shard.counts)
            job.progress(group[-1].number + 1, len(parts), "shards")
    if job.claims:
        return
    sums = {name: counts.pop(name) for name in _summed(options) if name in counts}
    if not counts["candidates"]:
        raise DataError(f"no candidate is left to reward; dropped by reason: {dict(counts)}")
    job.counts |= counts
    for name, summed in sums.items():
        job.counts[f"mean_{name}"] = summed / counts["candidates"]
    log.info("rewarded %d candidates of %d queries", counts["candidates"], counts["queries"])


def _open_corpus(job: Job, held: contextlib.ExitStack, encoder: Encoder) -> "Corpus":
    from expandr_core.evaluation.positive_ranks import Corpus

    options: RewardOptions = job.options
    folders = held.enter_context(job.all_shards("embeddings"))
    corpus = Corpus(folders, search_memory(options.search_memory_gb), encoder.model.device.type)
    if corpus.index.dimensions != encoder.dimensions:
        raise DataError(
            f"the embeddings have {corpus.index.dimensions} dimensions, the encoder that rewards "
            f"{encoder.dimensions}; encode the corpus with this encoder"
        )
    return corpus


def _groups(job: Job, parts: list[Part]) -> Iterator[list[Part]]:
    """Group the parts that this job takes: those of a group share a pass over the corpus.

    The groups change no byte, so they need not be those of an earlier run.
    """
    most_parts = -(-len(parts) // MOST_GROUPS) if job.claims else len(parts)
    options: RewardOptions = job.options
    most = 0.0
    if options.ranked:
        dimensions = job.spec.inputs["embeddings"].counts.get("dimensions", 1)
        most = search_memory(options.search_memory_gb) * 1e9 / 4 / (4 * dimensions)
    group: list[Part] = []
    texts = 0.0
    for part in parts:
        own = part.candidates.counts.get("texts", 0)
        if group and (texts + own > most or len(group) == most_parts):
            yield group
            group, texts = [], 0
        if not job.takes(part.number):
            continue
        group.append(part)
        texts += own
    if group:
        yield group


def _run_group(
    job: Job,
    group: list[Part],
    encoder: Callable[[], Encoder],
    corpus: Callable[[], "Corpus"],
    examples: Callable[[], Buckets],
) -> list[Artifact]:
    """Make the shards of a group; the first that is missing computes the rewards of all."""
    options: RewardOptions = job.options
    read = [_read(job, part, examples()) for part in group]

    @cache
    def rewarded() -> list[tuple[list[Row], Counter[str]]]:
        shards = [encode(written, encoder()) for written, _ in read]
        measured = _measure(options, shards, encoder(), corpus) if options.measured else []
        judged = (encoder(), options.reward, options.weights, job.seed)
        return [
            (judge(shard, *judged, measured[place] if measured else None), shard.counts)
            for place, shard in enumerate(shards)
        ]

    def write(place: int, out: Path) -> dict[str, float]:
        rows, counts = rewarded()[place]
        table = pa.Table.from_pylist(rows, schema=schema(options.measured))
        pq.write_table(table, out / "rewards.parquet", compression="zstd")
        return counts | {each: float(sum(row[each] for row in rows)) for each in _summed(options)}

    return [
        run_shard(job, group[place].number, sources, partial(write, place))
        for place, (_, sources) in enumerate(read)
    ]


def _cut(job: Job) -> Buckets:
    """Cut the examples, so that each part reads only its own."""
    path = job.inputs["examples"]
    count = shard_count(path, EXAMPLES_AT_ONCE)
    return Buckets(path, ["query", "positive"], count, job.out.parent)


def _read(job: Job, part: Part, examples: Buckets) -> tuple[Written, dict[str, str]]:
    """Read a part's rows, and say what its shard is made of.

    A reward that measures retrieval reads all positives of a query.
    """
    candidates, answers = (
        pq.read_table(job.store.local(each) / "expansions.parquet") if each else None
        for each in (part.candidates, part.answers)
    )
    assert candidates is not None
    rows = examples.rows_of(candidates["query_id"].unique())
    if not job.options.measured:
        rows = one_row_a_query(rows)
    sources = {"candidates": part.candidates.digest, "examples": rows_digest(rows)}
    if part.answers:
        sources["answers"] = part.answers.digest
    return Written(candidates, answers, rows), sources


def _summed(options: RewardOptions) -> list[str]:
    """Return the columns whose means are counted."""
    weighted = [name for name in names() if name != "self" or options.self_weight]
    measured = ["reward", *MEASURED.names] if options.measured else []
    return [*(f"{name}_similarity" for name in weighted), *measured]


def _measure(
    options: RewardOptions,
    shards: list[Encoded],
    encoder: Encoder,
    corpus: Callable[[], "Corpus"],
) -> list[tuple[Vectors, Measures]]:
    """Measure retrieval by the queries of some shards, alone and with each candidate."""
    from expandr_core.evaluation.positive_ranks import measure_cosines, measure_ranks

    if options.ranked:
        return measure_ranks(shards, encoder, options.fusion, corpus(), options.k)
    return [measure_cosines(shard, encoder, options.fusion) for shard in shards]
