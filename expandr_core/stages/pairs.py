"""Pairs: of each query's candidates the best is `chosen` and the worst `rejected`.

Every dropped query is counted by reason. Of too many pairs a seeded sample is kept, or, if `lazy`, those
of the first shards. A query's shard is a hash of its id, so the first shards are a random subset too,
the same for every seed.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.data.terms import count_words
from expandr_core.options.base import Options
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.preferences.pairs import (
    accept,
    acceptance_threshold,
    choose_pair,
    limit,
    nothing_left,
    pairs_schema,
    split_of,
)
from expandr_core.runtime.job import Job

log = logging.getLogger(__name__)
VERSION = 2
ROLE = "data"
ISOLATION = "never"


class PairsOptions(Options):
    """Which candidates become pairs, and whether these are all candidates."""

    preferences: PreferenceOptions = PreferenceOptions()
    partial: bool = False  # more candidates can follow: having no pair yet is no error


OPTIONS = PairsOptions
BYTES_GROW_WITH = "queries"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the candidates to choose from."""
    return {"candidates": step.inputs["rewards"].counts["candidates"]}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict as many accepted queries as there were in earlier runs."""
    options: PairsOptions = step.options
    queries = step.inputs["rewards"].counts["queries"]
    accepted = round(queries * step.texts.accepted_share)
    pairs = min(accepted, options.preferences.max_pairs)
    train = pairs * (1 - options.preferences.dpo_dev_share)
    return {"queries": queries, "accepted": accepted, "pairs": pairs, "train": train}


def run(job: Job) -> None:
    """Write `pairs.parquet`, sorted by query_id, with `split` train or dev."""
    stage: PairsOptions = job.options
    options = stage.preferences
    pairs = [choose_pair(rows) for rows in _queries(job)]
    counts = Counter({"queries": len(pairs)})
    threshold = acceptance_threshold(pairs, options)
    accepted = accept(pairs, threshold, options, counts)
    if not accepted and not stage.partial:
        raise nothing_left(pairs, threshold, counts)
    kept = limit(accepted, options, job.seed)
    counts["dropped/over_max_pairs"] += len(accepted) - len(kept)
    for pair in kept:
        pair["split"] = split_of(pair["query_id"], job.seed, options.dpo_dev_share)
        counts[f"pairs/{pair['split']}"] += 1
    table = pa.Table.from_pylist(
        kept, schema=pairs_schema(any("retrieval" in each for each in kept))
    )
    pq.write_table(table, job.out / "pairs.parquet", compression="zstd")
    job.counts |= counts | {"acceptance_threshold": threshold}
    if kept:
        _measure(job, kept)
    log.info("%d pairs of %d queries", len(kept), counts["queries"])


def _queries(job: Job) -> Iterator[list[dict[str, Any]]]:
    """Yield the candidates of one query after the other."""
    for shard in job.shards("rewards"):
        rows: list[dict[str, Any]] = pq.read_table(shard / "rewards.parquet").to_pylist()
        for _, group in groupby(rows, key=itemgetter("query_id")):
            yield list(group)


def _measure(job: Job, kept: list[dict[str, Any]]) -> None:
    def mean(column: str) -> float:
        return float(np.mean([pair[column] for pair in kept]))

    job.counts["mean_margin"] = mean("margin")
    for side in ("chosen", "rejected"):
        job.counts[f"mean_{side}_similarity"] = mean(f"{side}_similarity")
        words = [count_words(pair[f"{side}_text"]) for pair in kept]
        job.counts[f"mean_{side}_words"] = float(np.mean(words))
