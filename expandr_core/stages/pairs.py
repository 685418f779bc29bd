"""Pairs: of each query's candidates the best is `chosen` and the worst `rejected`.

The acceptance rule of the reference (the best candidate's summed similarity reaches 0.6) depends on
the encoder; for any but Contriever, a quantile of all queries is used by default. Every dropped query
is counted by reason.

Of too many pairs a seeded sample is kept, or, if `lazy`, those of the first shards. A query's shard is
a hash of its id, so the first shards are a random subset too, the same one for every seed.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.data.terms import count_words
from expandr_core.errors import DataError
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.preferences.rewards import choose_pair, tie_seed
from expandr_core.runtime.job import Job
from expandr_core.seeding import derive_seed, unit_interval

log = logging.getLogger(__name__)
VERSION = 1
ROUNDING = 1e-6  # similarities are float32: 0.35 + 0.25 falls short of 0.6 by 6e-9
ROLE = "data"
ISOLATION = "never"
SIDE = (
    ("text", pa.string()),
    ("sample", pa.int32()),
    ("finish_reason", pa.string()),
    ("similarity_to_positive", pa.float32()),
    ("similarity_to_answer", pa.float32()),
    ("retriever_rank", pa.int32()),
    ("answer_rank", pa.int32()),
    ("reward", pa.float64()),
)
SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("part", pa.string()),
        ("margin", pa.float64()),
        *((f"{side}_{name}", kind) for side in ("chosen", "rejected") for name, kind in SIDE),
    ]
)


class PairsOptions(PreferenceOptions):
    """Which candidates become pairs, and whether there can be more of them."""

    more_to_come: bool = False  # shards are left to write: having no pair yet is no error


OPTIONS = PairsOptions


def run(job: Job) -> None:
    """Write `pairs.parquet`, sorted by query_id, with `part` train or dev."""
    options: PairsOptions = job.options
    counts: Counter[str] = Counter()
    pairs = [
        _pair(job.seed, rows, counts)
        for shard in job.shards("rewards")
        for rows in _queries(shard / "rewards.parquet")
    ]
    best = {pair["query_id"]: pair.pop("best_similarity") for pair in pairs}
    threshold = options.acceptance_value  # also of "auto", which a flow has made one of the others
    if options.acceptance == "quantile" and best:
        threshold = float(np.quantile(list(best.values()), options.acceptance_value))
    kept = []
    for pair in pairs:
        counts["with_preference"] += 0 < pair["margin"] >= options.minimum_margin
        if best[pair["query_id"]] < threshold - ROUNDING:
            counts["dropped/below_acceptance"] += 1
        elif pair["chosen_text"] == pair["rejected_text"] or pair["margin"] <= 0:
            counts["dropped/no_preference"] += 1
        elif pair["margin"] < options.minimum_margin:
            counts["dropped/below_minimum_margin"] += 1
        else:
            kept.append(pair)
    if not kept and not options.more_to_come:
        raise DataError(
            f"no preference pair is left of {len(pairs)} queries (dropped by reason: {dict(counts)}; "
            f"best summed similarity {max(best.values(), default=0):.2f}, threshold {threshold:.2f}); "
            f"{_remedy(counts)}"
        )
    counts["accepted"] += len(kept)
    if not options.lazy:
        kept.sort(key=lambda pair: derive_seed("pair", job.seed, pair["query_id"]))
    counts["dropped/over_max_pairs"] += max(0, len(kept) - options.max_pairs)
    kept = sorted(kept[: options.max_pairs], key=lambda pair: pair["query_id"])
    for pair in kept:
        in_dev = unit_interval("dpo-dev", job.seed, pair["query_id"]) < options.dev_share
        pair["part"] = "dev" if in_dev else "train"
        counts[f"pairs/{pair['part']}"] += 1
    pq.write_table(
        pa.Table.from_pylist(kept, schema=SCHEMA), job.out / "pairs.parquet", compression="zstd"
    )
    job.counts |= counts | {"acceptance_threshold": threshold}
    if kept:
        _measure(job, kept)
    log.info("%d pairs of %d queries", len(kept), counts["queries"])


def _remedy(counts: Counter[str]) -> str:
    """Say what to do if nothing is left, by what could have been a pair."""
    if counts["with_preference"]:
        return "lower preferences.acceptance_value, or use acceptance 'quantile'"
    if counts["dropped/below_minimum_margin"]:
        return "lower preferences.minimum_margin"
    return (
        "the retriever does not tell the candidates of any query apart by more than its rounding: "
        "name another in retriever.model, or let candidates differ more "
        "(expand.candidates.sampling_temperatures)"
    )


def _queries(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the candidates of one query after the other."""
    rows = pq.read_table(path).to_pylist()
    for _, group in groupby(rows, key=itemgetter("query_id")):
        yield list(group)


def _pair(seed: int, rows: list[dict[str, Any]], counts: Counter[str]) -> dict[str, Any]:
    """Make the pair of one query, before any rule that drops it."""
    counts["queries"] += 1
    to_positive = np.array([row["similarity_to_positive"] for row in rows])
    to_answer = np.array([row["similarity_to_answer"] for row in rows])
    query_id = rows[0]["query_id"]
    tie_seeds = [tie_seed(seed, query_id, row["text"]) for row in rows]
    rounding = rows[0]["similarity_rounding"] or 0.0
    choice = choose_pair(to_positive, to_answer, tie_seeds, rounding)
    assert choice is not None  # the reward stage keeps queries with two candidates or more
    pair = {
        "query_id": query_id,
        "query": rows[0]["query"],
        "margin": choice.margin,
        "best_similarity": float((to_positive + to_answer).max()),
    }
    for side, position in (("chosen", choice.chosen), ("rejected", choice.rejected)):
        row = rows[position]
        row["reward"] = row["retriever_reward"] + row["self_reward"]
        pair |= {f"{side}_{name}": row[name] for name, _ in SIDE}
    return pair


def _measure(job: Job, kept: list[dict[str, Any]]) -> None:
    def mean(column: str) -> float:
        return float(np.mean([pair[column] for pair in kept]))

    job.counts["mean_margin"] = mean("margin")
    for side in ("chosen", "rejected"):
        job.counts[f"mean_{side}_similarity_to_positive"] = mean(f"{side}_similarity_to_positive")
        job.counts[f"mean_{side}_words"] = float(
            np.mean([count_words(pair[f"{side}_text"]) for pair in kept])
        )
