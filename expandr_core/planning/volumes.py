"""What the time and the disk of each stage depend on, and what its artifact will count."""

import math
from typing import Any

import pyarrow.parquet as pq

from expandr_core.runtime.shards import query_count, shard_sizes
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store

# stages whose volumes are counts of their artifacts, under these names
COUNTED = {
    "expand": {"prompts": "queries", "tokens": "tokens"},
    "reward": {"candidates": "candidates"},
    "encode": {"passages": "encoded"},
    "audit_pairs": {"pairs": "pairs"},
}
# counts that a stage's bytes grow with; those of the others, such as a model's, do not grow
BYTES_GROW_WITH = {
    "expand": "tokens",
    "reward": "candidates",
    "pairs": "queries",
    "encode": "passages",
    "mine": "queries",
    "evaluate": "queries",
    "evaluate_bm25": "queries",
}


def volume(
    stage: str,
    options: dict[str, Any],
    inputs: dict[str, Artifact],
    counts: dict[str, float],
    store: Store,
) -> dict[str, float]:
    """Return what the time of a stage depends on; nothing, if it is always about the same."""
    if stage in COUNTED:
        return {name: counts[count] for name, count in COUNTED[stage].items()}
    match stage:
        case "pairs":
            return {"candidates": inputs["rewards"].counts["candidates"]}
        case "dpo":
            training = options["training"]
            pairs = counts["train_pairs"] * training["epochs"]
            times = math.ceil(pairs / training["batch_size"] / training["evaluation_steps"])
            return {"pairs": pairs, "dev pairs": counts["dev_pairs"] * times}
        case "mine":
            passages = inputs["embeddings"].counts["passages"]
            return {"queries": counts["queries"], "similarities": counts["queries"] * passages}
        case "train_retriever":
            expanded = counts["rows"] * ("expansions" in inputs)
            return {"rows": counts["rows"], "expanded rows": expanded}
        case "evaluate":
            similarities = counts["queries"] * inputs["embeddings"].counts["passages"]
            return {"texts": _texts(inputs, counts), "similarities": similarities}
        case "evaluate_bm25":
            return {"texts": _texts(inputs, counts), "passages": _rows(store, inputs["corpus"])}
        case "compare":
            measured = [made for role, made in inputs.items() if role.startswith("measured/")]
            results = sum(each.counts["queries"] for each in measured)
            return {"systems": len(measured), "results": results}
        case "tiny_llm" | "tiny_retriever":
            return {"texts": options["steps"] * options["batch_size"]}
    return {}


def _texts(inputs: dict[str, Artifact], counts: dict[str, float]) -> float:
    """Count queries and their expansions."""
    return counts["queries"] + (
        inputs["expansions"].counts["texts"] if "expansions" in inputs else 0
    )


def _rows(store: Store, table: Artifact) -> int:
    return pq.read_metadata(store.local(table)).num_rows


def predicted_counts(
    spec: StageSpec, tokens_per_text: dict[str, float], accepted_share: float, store: Store
) -> dict[str, float]:
    """Predict what a stage's artifact will count, as far as other steps depend on it.

    Args:
        spec: the stage; the counts of its inputs may be predictions too.
        tokens_per_text: mean length of a text, by prompt.
        accepted_share: share of the rewarded queries that have an acceptable pair.
        store: has the tables that the run starts from.
    """
    inputs, options = spec.inputs, spec.options
    match spec.stage:
        case "expand":
            sizes = shard_sizes(store.local(inputs["queries"]), options["queries_per_shard"])
            queries = sum(sizes[: spec.max_shards or len(sizes)])
            texts = queries * options["sampling"]["samples"]
            tokens = texts * tokens_per_text[options["prompt"]["name"]]
            return {"queries": queries, "texts": texts, "tokens": tokens}
        case "reward":
            written = inputs["candidates"].counts
            return {"queries": written["queries"], "candidates": written["texts"]}
        case "pairs":
            queries = inputs["rewards"].counts["queries"]
            accepted = round(queries * accepted_share)
            preferences = options["preferences"]
            pairs = min(accepted, preferences["max_pairs"])
            train = pairs * (1 - preferences["dpo_dev_share"])
            return {"queries": queries, "accepted": accepted, "pairs": pairs, "train": train}
        case "audit_pairs":  # nothing that stops the run
            alike = {"chosen_longer": 0, "rejected_longer": 0, "length_p": 1.0, "agreement": 1.0}
            return {"pairs": inputs["pairs"].counts["pairs"], "length_agreement": 0.0, **alike}
        case "dpo":
            pairs = inputs["pairs"].counts
            return {"train_pairs": pairs["train"], "dev_pairs": pairs["pairs"] - pairs["train"]}
        case "encode":
            passages = _rows(store, inputs["corpus"])
            return {"passages": passages, "encoded": passages}
        case "mine":
            return {"queries": query_count(store.local(inputs["examples"]))}
        case "train_retriever":
            training = options["training"]
            passes = training["epochs"] * training["expansions_per_query"]
            examples = _rows(store, inputs["examples"]) * (1 - training["held_out_share"])
            return {"rows": examples * passes}
        case "evaluate" | "evaluate_bm25":
            return {"queries": _rows(store, inputs["queries"])}
    return {}
