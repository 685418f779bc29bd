"""Whether an aligned LLM writes nearer to the positives, in the eyes of the base retriever.

Within a round the mean of a reward by ranks is constant, and later rounds are rewarded by other
retrievers. So the measure is the similarity of the expanded query to its best relevant passage, always
by the retriever of the start: it is the score of that passage in the rankings that were evaluated.
"""

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import MeasuredDataset, titles_of
from expandr_core.evaluation.means import without_nan
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.intervals import bootstrap
from expandr_core.lineage.nodes import Node
from expandr_core.reports.histograms import histograms
from expandr_core.reports.rankings import best_positives, relevant
from expandr_core.seeding import derive_seed
from expandr_core.store.artifacts import Artifact

_SUMMED = ("vector", "concatenate", "hyde")  # fusions whose scores are similarities


def similarity_of(run: ComparedRun) -> dict[str, Any]:
    """Measure the similarity under the base retriever, without and with each kind of expansion.

    A system's `change` is from the query alone, its `gain` from the LLM before its alignment.

    Only queries whose relevant passage is among the hits of all systems count; the rest is `left_out`.

    Raises:
        DataError: if fewer than two systems search with the base retriever.
    """
    systems = _systems(run)
    if len(systems) < 2:
        raise DataError("fewer than two systems search with the retriever of the start")
    [first, *_] = systems.values()
    positives = relevant(run.store.local(Artifact(**first.inputs["qrels"])))
    found = {
        name: best_positives(run.store.local(_ranking(node)), positives)
        for name, node in systems.items()
    }
    common = sorted(set.intersection(*(set(each) for each in found.values())))
    if not common:
        raise DataError("no query has a relevant passage among the hits of all systems")
    values = {name: np.array([each[q][0] for q in common]) for name, each in found.items()}
    queries = pq.read_table(
        run.store.local(Artifact(**first.inputs["queries"])), columns=["query_id", "cluster"]
    )
    cluster_of = dict(zip(*(column.to_pylist() for column in queries.columns), strict=True))
    clusters = np.array([cluster_of[query_id] for query_id in common])
    return _summary(run, values, clusters) | {
        "dataset": _first_place(run),
        "seeds": max(run.measured.seeds[name] for name in systems),
        "retriever": first.inputs["retriever"]["key"],
        "queries": len(common),
        "left_out": len(positives) - len(common),
        "depth": int(first.manifest["options"]["ranking"]["depth"]),
    }


def _summary(run: ComparedRun, values: dict[str, Any], clusters: Any) -> dict[str, Any]:
    titles, names = titles_of(run.comparison), list(values)
    scores = np.stack(list(values.values()), axis=1)
    before = names.index("query") if "query" in names else 0
    start = names.index("untrained") if "untrained" in names else before
    changes, gains = scores - scores[:, [before]], scores - scores[:, [start]]
    seed = derive_seed("report", "similarity")
    limits = bootstrap(np.concatenate([scores, changes, gains], axis=1), clusters, seed)
    own, differences, gained = np.split(limits, 3, axis=1)
    systems = [
        {"system": name, "title": titles[name], "mean": float(scores[:, place].mean())}
        | {"change": None if place == before else float(changes[:, place].mean())}
        | {"gain": None if place in (before, start) else float(gains[:, place].mean())}
        | without_nan({
            "low": own[0, place], "high": own[1, place],
            "change_low": differences[0, place], "change_high": differences[1, place],
            "gain_low": gained[0, place], "gain_high": gained[1, place],
        })
        for place, name in enumerate(names)
    ]  # fmt: skip
    return {"before": titles[names[before]], "systems": systems, "histogram": histograms(values)}


def _systems(run: ComparedRun) -> dict[str, Node]:
    """Return evaluations on the first dataset of the first dense retriever, sampled and fused."""
    report = run.lineage.node(run.run.report.key)
    found: dict[str, Node] = {}
    base = ""
    for name in titles_of(run.comparison):
        node = run.lineage.node(report.inputs[f"measured/{_first_place(run)}/{name}/0"]["key"])
        if node.stage != "evaluate":
            continue
        base = base or node.inputs["retriever"]["key"]
        fusion = node.manifest["options"].get("fusion", {})
        fused = fusion.get("method", "vector") in _SUMMED and fusion.get("expansion_weight", 0) < 1
        if node.inputs["retriever"]["key"] == base and fused and not name.endswith("-greedy"):
            found[name] = node
    return found


def _first_place(run: ComparedRun) -> str:
    """Name the first dataset, or its first subset."""
    return next(iter(MeasuredDataset(**run.comparison["datasets"][0]).keys().values()))


def _ranking(node: Node) -> Artifact:
    return Artifact(key=node.key, digest="", path="run.parquet")
