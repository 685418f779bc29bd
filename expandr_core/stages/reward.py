"""Reward: rank each query's candidates by the current retriever.

Its shards are those of the candidates: rewards.parquet, a row a candidate, sorted by (query_id, sample).
Candidates, positives and answers of a shard are encoded together, each distinct text once. Similarities
that differ by no more than the encoder's rounding are equal. Empty and repeated candidates of a query
are dropped first and counted. Rows are joined by id; a missing answer or candidate is an error.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.encoders.encode import Encoder, encoder_of
from expandr_core.errors import DataError
from expandr_core.options.base import Options
from expandr_core.options.retriever import EncodingOptions, RetrieverOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.preferences.rewards import Candidates, names, schema, score, tie_seed
from expandr_core.runtime.job import Job
from expandr_core.runtime.runner import run_shard
from expandr_core.runtime.shards import one_row_a_query, rows_digest
from expandr_core.store.artifacts import Artifact

log = logging.getLogger(__name__)
VERSION = 6
ROLE = "embed"
ISOLATION = "on-gpu"


class RewardOptions(Options):
    """How texts become vectors; the same as in retrieval."""

    encoding: EncodingOptions

    @classmethod
    def of(cls, options: RetrieverOptions) -> Self:
        """Rank by this retriever."""
        return cls(encoding=options.encoding)


OPTIONS = RewardOptions
BYTES_GROW_WITH = "candidates"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the candidates to encode."""
    return {"candidates": step.counts["candidates"]}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every text is a candidate."""
    written = step.inputs["candidates"].counts
    return {"queries": written["queries"], "candidates": written["texts"]}


def shards(job: Job) -> int:
    """Count the shards of the candidates.

    Raises:
        DataError: if the answers are cut into another number of shards.
    """
    candidates, answers = (
        len(job.store.shards(job.spec.inputs[role])) for role in ("candidates", "answers")
    )
    if candidates != answers:
        raise DataError(
            f"candidates have {candidates} shards and answers {answers}; write both for the same "
            "queries with the same queries_per_shard"
        )
    return candidates


def run(job: Job) -> None:
    """Reward each shard of the candidates that is not there yet."""
    total = shards(job)
    options: RewardOptions = job.options
    encoder = cache(lambda: encoder_of(job, options.encoding))  # loaded if a shard is missing

    counts: Counter[str] = Counter()
    shards_of = (job.store.shards(job.spec.inputs[role]) for role in ("candidates", "answers"))
    for number, (candidates, answers) in enumerate(zip(*shards_of, strict=True)):
        if job.takes(number):
            counts.update(_run_shard(job, candidates, answers, encoder).counts)
        job.progress(number + 1, total, "shards")
    if job.slice:
        return
    similarities = {name: counts.pop(f"{name}_similarity") for name in names()}
    if not counts["candidates"]:
        raise DataError(f"no candidate is left to reward; dropped by reason: {dict(counts)}")
    job.counts |= counts
    for name, summed in similarities.items():
        job.counts[f"mean_{name}_similarity"] = summed / counts["candidates"]
    log.info("rewarded %d candidates of %d queries", counts["candidates"], counts["queries"])


def _run_shard(
    job: Job, candidates: Artifact, answers: Artifact, encoder: Callable[[], Encoder]
) -> Artifact:
    """Make one shard's artifact from that of its candidates, its answers and its examples."""
    written, answered = (
        pq.read_table(job.store.local(part) / "expansions.parquet")
        for part in (candidates, answers)
    )
    ids = written["query_id"].unique().sort()
    examples = one_row_a_query(job.inputs["examples"], ids, ["query", "positive"])

    def write(out: Path) -> dict[str, float]:
        rows, counts = _reward_shard(job.seed, written, answered, examples, encoder())
        table = pa.Table.from_pylist(rows, schema=schema())
        pq.write_table(table, out / "rewards.parquet", compression="zstd")
        columns = (f"{name}_similarity" for name in names())
        return counts | {each: float(sum(row[each] for row in rows)) for each in columns}

    sources = {
        "candidates": candidates.digest,
        "answers": answers.digest,
        "examples": rows_digest(examples),
    }
    return run_shard(job, sources, write)


def _reward_shard(
    seed: int, candidates: pa.Table, answers: pa.Table, examples: pa.Table, encoder: Encoder
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Reward the queries of one shard; return the rows, and what was dropped and why."""
    counts: Counter[str] = Counter()
    by_query = _by_query(candidates, "candidate")
    answer_of = {id_: rows[0]["text"] for id_, rows in _by_query(answers, "answer").items()}
    example_of = {row["query_id"]: row for row in examples.to_pylist()}
    for query_id in sorted(by_query.keys() | answer_of.keys()):
        for role, ids in (("candidate", by_query), ("answer", answer_of), ("example", example_of)):
            if query_id not in ids:
                raise DataError(
                    f"query {query_id!r} has no {role}; candidates, answers and examples must come "
                    "from the same queries"
                )
    kept: dict[str, list[dict[str, Any]]] = {}
    for query_id, rows in by_query.items():
        rows = _distinct(rows, counts)
        if not answer_of[query_id]:
            counts["dropped_queries/empty_answer"] += 1
        elif len(rows) < 2:
            counts["dropped_queries/fewer_than_two_candidates"] += 1
        else:
            kept[query_id] = rows
    texts = [row["text"] for rows in kept.values() for row in rows]
    texts += [example_of[query_id]["positive"] for query_id in kept]
    texts += [answer_of[query_id] for query_id in kept]
    distinct = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    vectors = encoder.encode_passages(list(distinct))[[distinct[text] for text in texts]]
    positives = dict(zip(kept, vectors[-2 * len(kept) :], strict=False))
    answers_by_query = dict(zip(kept, vectors[len(vectors) - len(kept) :], strict=True))
    rewarded: list[dict[str, Any]] = []
    for query_id, rows in kept.items():
        own = vectors[len(rewarded) : len(rewarded) + len(rows)]  # (candidates, dimensions)
        positive, answer = positives[query_id], answers_by_query[query_id]
        longest = max(np.linalg.norm(positive), np.linalg.norm(answer))
        rounding = encoder.rounding * float(np.linalg.norm(own, axis=1).max() * longest)
        ties = [tie_seed(seed, query_id, row["text"]) for row in rows]
        query = example_of[query_id]["query"]
        scores = score(Candidates(own, positive, answer, float(np.float32(rounding))), ties)
        rewarded += [
            {**row, "query": query, **each} for row, each in zip(rows, scores, strict=True)
        ]
    counts["queries"] += len(kept)
    counts["candidates"] += len(rewarded)
    return rewarded, counts


def _by_query(table: pa.Table, what: str) -> dict[str, list[dict[str, Any]]]:
    """Group rows by query, in the order of ids and samples, however they come."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.sort_by([("query_id", "ascending"), ("sample", "ascending")]).to_pylist():
        rows = found[row["query_id"]]
        if rows and rows[-1]["sample"] == row["sample"]:
            raise DataError(
                f"query {row['query_id']!r} has {what} {row['sample']} twice; write them again"
            )
        rows.append(row)
    return found


def _distinct(rows: list[dict[str, Any]], counts: Counter[str]) -> list[dict[str, Any]]:
    """Drop empty texts and repetitions, keeping the first sample of each text."""
    kept: dict[str, dict[str, Any]] = {}
    for row in rows:
        if not row["text"]:
            counts["dropped_candidates/empty"] += 1
        elif row["text"] in kept:
            counts["dropped_candidates/duplicate"] += 1
        else:
            kept[row["text"]] = row
    return list(kept.values())
