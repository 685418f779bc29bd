"""Preference pairs: the best candidate of a query against its worst, and which pairs are accepted.

The reference accepts a query whose best summed similarity reaches 0.6. That threshold suits Contriever;
other encoders' similarities lie elsewhere, nearly all above it or all below, so for these a quantile of
all queries is the default.
"""

import contextlib
import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from expandr_core.errors import DataError
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.preferences.rewards import MEASURED, by_preference
from expandr_core.records import PAIR_SIDE, PAIRS
from expandr_core.seeding import derive_seed, unit_interval
from expandr_core.store.artifacts import Artifact
from expandr_core.store.manifests import reference
from expandr_core.store.store import Store

ROUNDING = 1e-6  # similarities are float32: 0.35 + 0.25 falls short of 0.6 by 6e-9
RETRIEVAL = "retrieval"  # column of MEASURED
WORSE = "dropped/does_not_beat_the_query"  # a count
LOWEST_SHARE = 0.1  # of the queries, rejected by default if the threshold is a quantile
Row = dict[str, Any]


def settled(options: PreferenceOptions, rewards: Artifact, store: Store) -> PreferenceOptions:
    """Replace the acceptance rule "auto" by the rule that suits the encoder that rewarded.

    That is the paper's threshold for Contriever and for lazy pairs, which need a threshold, and a
    quantile otherwise. The paper sums two similarities, so the threshold is for a mean weight of 1.
    """
    if options.acceptance != "auto":
        return options
    if options.lazy or _is_contriever(rewards, store):
        weight = (options.retriever_weight + options.self_weight) / 2
        value = options.acceptance_value * weight
        return options.model_copy(update={"acceptance": "threshold", "acceptance_value": value})
    return options.model_copy(update={"acceptance": "quantile", "acceptance_value": LOWEST_SHARE})


def _is_contriever(rewards: Artifact, store: Store) -> bool:
    """Tell whether the encoder that rewarded was Contriever before any training."""
    manifest = store.manifest(rewards.key)
    with contextlib.suppress(
        FileNotFoundError
    ):  # an ancestor was removed: judge by the oldest left
        while "retriever" in manifest["inputs"]:
            manifest = store.manifest(manifest["inputs"]["retriever"]["key"])
    clues = str(manifest["options"].get("convention"))
    model = reference(manifest)
    if "config.json" in model.files:  # no other file is fetched
        published = json.loads(store.local(model.at("config.json")).read_bytes())
        clues += f" {published.get('architectures')} {published.get('_name_or_path')}"
    return "contriever" in clues.lower()


def choose_pair(rows: list[Row]) -> Row:
    """Pair the best and the worst candidate of one query; no rule drops anything yet.

    Two candidates that no component tells apart have no margin, even if another candidate stands
    between them.

    Args:
        rows: the query's rows of rewards.parquet, at least two.
    """
    best, worst = max(rows, key=by_preference), min(rows, key=by_preference)
    pair = {
        "query_id": best["query_id"],
        "query": best["query"],
        "margin": best["reward"] - worst["reward"] if worst["apart"] else 0.0,
        "best_similarity": max(row["similarity"] for row in rows),
    }
    for side, row in (("chosen", best), ("rejected", worst)):
        pair |= {f"{side}_{name}": row[name] for name, _ in PAIR_SIDE}
        if RETRIEVAL in row:
            pair[f"{side}_{RETRIEVAL}"] = row[RETRIEVAL]
    return pair | {name: best[name] for name in MEASURED.names if name in best}


def pairs_schema(measured: bool) -> pa.Schema:
    """Return the schema of pairs.parquet; if retrieval was measured, with its columns."""
    kind = pa.float64()
    columns = [f"query_{RETRIEVAL}", f"chosen_{RETRIEVAL}", f"rejected_{RETRIEVAL}"]
    return pa.schema([*PAIRS, *((name, kind) for name in columns if measured)])


def acceptance_threshold(pairs: list[Row], options: PreferenceOptions) -> float:
    """Return the similarity that a query's best candidate must reach."""
    if options.acceptance == "quantile" and pairs:
        best = [pair["best_similarity"] for pair in pairs]
        return float(np.quantile(best, options.acceptance_value))
    return options.acceptance_value


def accept(
    pairs: list[Row], threshold: float, options: PreferenceOptions, counts: Counter[str]
) -> list[Row]:
    """Drop the pairs that nothing can be learned from; count the dropped by reason."""
    minimum_margin, accepted = options.minimum_margin, []
    for pair in pairs:
        beats = not options.beats_query or pair["beats_query"]
        counts["with_preference"] += 0 < pair["margin"] >= minimum_margin and beats
        if pair["best_similarity"] < threshold - ROUNDING:
            counts["dropped/below_acceptance"] += 1
        elif pair["chosen_text"] == pair["rejected_text"] or pair["margin"] <= 0:
            counts["dropped/no_preference"] += 1
        elif pair["margin"] < minimum_margin:
            counts["dropped/below_minimum_margin"] += 1
        elif not beats:
            counts[WORSE] += 1
        else:
            accepted.append(pair)
    counts["accepted"] += len(accepted)
    return accepted


def limit(pairs: list[Row], options: PreferenceOptions, seed: int) -> list[Row]:
    """Keep at most `max_pairs`, sorted by query: a seeded sample, or if lazy those that came first."""
    if not options.lazy:
        pairs = sorted(pairs, key=lambda pair: derive_seed("pair", seed, pair["query_id"]))
    return sorted(pairs[: options.max_pairs], key=lambda pair: pair["query_id"])


def split_of(query_id: str, seed: int, dev_share: float) -> str:
    """Return the split of a query's pair: "train" or, for a seeded share, "dev"."""
    return "dev" if unit_interval("dpo-dev", seed, query_id) < dev_share else "train"


def nothing_left(pairs: list[Row], threshold: float, counts: Counter[str]) -> DataError:
    """Explain why no pair is left, with the remedy that helps."""
    best = max((pair["best_similarity"] for pair in pairs), default=0)
    dropped = {name: number for name, number in counts.items() if name.startswith("dropped/")}
    if counts["with_preference"]:
        remedy = "lower preferences.acceptance_value, or use acceptance 'quantile'"
    elif counts[WORSE]:
        remedy = (
            "no chosen text finds the positives better than its query does: set "
            "preferences.beats_query to false"
        )
    elif counts["dropped/below_minimum_margin"]:
        remedy = "lower preferences.minimum_margin"
    else:
        remedy = (
            "the retriever tells the candidates of no query apart by more than its rounding: name "
            "another in retriever.model, or make candidates differ more "
            "(expand.candidates.sampling_temperatures)"
        )
    return DataError(
        f"no preference pair is left of {len(pairs)} queries (dropped by reason: {dropped}; "
        f"best summed similarity {best:.2f}, threshold {threshold:.2f}); {remedy}"
    )
