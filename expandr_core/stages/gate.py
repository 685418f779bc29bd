"""Learn on dev how much expansions weigh, and which queries are expanded.

Inputs, of the dev queries only: `retriever`, `embeddings` (of the corpus), `queries`, `qrels` and
`expansions`. Each query is searched for with every weight; of a retriever that is searched by vectors,
in one pass over the corpus. Writes

gate.json         see `expandr_core.retrieval.gate.Gate`
queries.parquet   a row a judged query: query_id, cluster, nDCG@10 alone and with the weight of the
                  gate, the features, its score by a regression without its cluster, and whether a
                  gate that is learned without it expands it
"""

import logging
import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expandr_core.encoders.encode import encoder_of
from expandr_core.errors import DataError
from expandr_core.evaluation.metrics import HEADLINE, score_queries
from expandr_core.evaluation.run_queries import query_blocks
from expandr_core.evaluation.significance import compare_queries
from expandr_core.options.base import Options
from expandr_core.options.data import IdenticalIds
from expandr_core.options.evaluation import RankingOptions, SignificanceOptions
from expandr_core.options.gate import GateOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions, IndexOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.retrieval.expanded import ExpandedSearch
from expandr_core.retrieval.gate import AFTER, BEFORE, Floats, Gate
from expandr_core.retrieval.gate_features import describe_after, describe_before, encode_apart
from expandr_core.retrieval.index import open_index
from expandr_core.retrieval.weighted_runs import runs_by_weight
from expandr_core.runtime.job import Job
from expandr_core.runtime.memory import search_memory
from expandr_core.seeding import derive_seed
from expandr_core.training.gate_fit import Fitted, best_weight, fit_gate

log = logging.getLogger(__name__)
VERSION = 3
ROLE = "measure"
ISOLATION = "on-gpu"
_DIGITS = 6  # of the standardised regression, so that another processor writes the same


class GateStageOptions(Options):
    """How the dev queries are searched, and what is learned from it."""

    encoding: EncodingOptions
    fusion: FusionOptions
    index: IndexOptions
    ranking: RankingOptions
    gate: GateOptions
    significance: SignificanceOptions

    @classmethod
    def of(cls, options: JointLoopOptions, identical_ids: IdenticalIds) -> Self:
        """Learn it for the retriever of a run; `identical_ids` is what the dataset's library does."""
        retriever = options.measured_retriever
        return cls(
            encoding=retriever.encoding,
            fusion=retriever.fusion,
            index=retriever.index,
            ranking=RankingOptions.of(options.evaluate, identical_ids),
            gate=options.gate,
            significance=options.evaluate.significance,
        )

    @property
    def grid(self) -> tuple[float, ...]:
        """The weights to choose from; methods other than "vector" know three."""
        tenths = range(11) if self.fusion.method == "vector" else (0, 5, 10)
        return tuple(tenth / 10 for tenth in tenths)


OPTIONS = GateStageOptions
BYTES_GROW_WITH = "queries"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the texts to encode, and the similarities to compute."""
    options: GateStageOptions = step.options
    similarities = len(options.grid) * step.counts["queries"]
    similarities *= step.inputs["embeddings"].counts["passages"]
    return {"texts": step.measured_texts, "similarities": similarities}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every query is measured."""
    return {"queries": step.rows("queries")}


def run(job: Job) -> None:
    """Search with every weight, choose one, fit the gate, and write both."""
    options: GateStageOptions = job.options
    block, qrels = _judged(job)
    runs, features_of = _search(job, block)
    scores = {weight: _scored(qrels, found, block) for weight, found in runs.items()}
    alpha = best_weight({weight: _ndcg(scores[weight]) for weight in options.grid})
    weight = alpha or options.fusion.expansion_weight
    features = features_of(weight)
    gate, rows = _fit(job, alpha, weight, scores, features)
    gate.write(job.out)
    pq.write_table(rows, job.out / "queries.parquet", compression="zstd")
    job.counts |= {
        "queries": len(block),
        "clusters": len(block["cluster"].unique()),
        "expanded": int(gate.expands(features).sum()),
        "alpha": alpha,
    }
    log.info("on dev, weight %.1f is the best; of the queries, expand: %s", alpha, gate.policy)


def _judged(job: Job) -> tuple[pa.Table, pa.Table]:
    """Return the queries with a relevant passage, sorted by id, with expansions; and the judgements."""
    qrels = pq.read_table(job.inputs["qrels"])
    relevant = qrels.filter(pc.field("relevance") > 0)["query_id"]
    queries = pa.concat_tables(query_blocks(job))
    block = queries.filter(pc.field("query_id").isin(relevant)).sort_by("query_id")
    if not len(block):
        raise DataError(
            "no dev query has a relevant passage, so nothing can be learned from them; give "
            "judgements of dev queries, or set gate.mode to 'off'"
        )
    return block, qrels.filter(pc.field("query_id").isin(block["query_id"]))


def _search(job: Job, block: pa.Table) -> tuple[dict[float, pa.Table], Callable[[float], Floats]]:
    """Return the run of each weight, and what describes the queries, given the gate's weight."""
    options: GateStageOptions = job.options
    encoder = encoder_of(job, options.encoding)
    encoded = encode_apart(encoder, block)
    weights = sorted({*options.grid, options.fusion.expansion_weight})
    memory_gb = search_memory(options.index.search_memory_gb)
    with job.all_shards("embeddings") as folders:
        index = open_index(folders, encoder.model.device.type)
        search = ExpandedSearch(encoder, index, options.fusion, options.ranking, memory_gb)
        runs = runs_by_weight(search, block, encoded, weights)

    def features_of(weight: float) -> Floats:
        if options.gate.mode == "after":
            return describe_after(block, runs[0.0], runs[weight], encoded)
        return describe_before(block, runs[0.0])

    return runs, features_of


def _scored(qrels: pa.Table, run: pa.Table, block: pa.Table) -> pa.Table:
    """Measure a run: query_id, cluster and the metrics, in the order of the block."""
    return score_queries(qrels, run).add_column(1, "cluster", block["cluster"])


def _ndcg(scores: pa.Table) -> Floats:
    return scores[HEADLINE].to_numpy()


def _fit(
    job: Job, alpha: float, weight: float, scores: dict[float, pa.Table], features: Floats
) -> tuple[Gate, pa.Table]:
    """Fit the gate to the queries' gains; return it, and the rows of queries.parquet."""
    options: GateStageOptions = job.options
    cost, significance = options.gate.cost, options.significance
    seed, alone = derive_seed("gate", job.seed), scores[0.0]
    names = alone["cluster"].to_numpy(zero_copy_only=False)
    clusters = np.unique(names, return_inverse=True)[1]
    gains = _ndcg(scores[weight]) - _ndcg(alone)
    fitted = fit_gate(features, gains, clusters, cost, significance, seed)
    tests = {
        f"against {other:g}": compare_queries(
            scores[other], scores[alpha], HEADLINE, significance.test, seed
        )._asdict()
        for other in (0.0, 0.5)
    }
    dev = {
        "metric": HEADLINE,
        "queries": len(gains),
        "clusters": int(clusters.max()) + 1,
        "by_weight": {f"{w:g}": float(_ndcg(scores[w]).mean()) for w in options.grid},
        "tests": tests,
        "alone": float(_ndcg(alone).mean()),
        "always": float(_ndcg(scores[weight]).mean()),
        **_reached(fitted, alone, gains),
    }
    mode = options.gate.mode
    columns = {"ndcg_alone": alone[HEADLINE], "ndcg_expanded": scores[weight][HEADLINE]}
    columns |= {n: features[:, i] for i, n in enumerate(AFTER if mode == "after" else BEFORE)}
    columns |= {"score": fitted.scores, "expanded": fitted.expanded}
    rows = pa.table({"query_id": alone["query_id"], "cluster": alone["cluster"], **columns})
    return gate_of(options.gate, alpha, weight, fitted, dev), rows


def _reached(fitted: Fitted, alone: pa.Table, gains: Floats) -> dict[str, float]:
    """Say what a learned gate reaches on queries that it is not fitted on, whether it is kept or not."""
    return {
        "learned": float((_ndcg(alone) + fitted.expanded * gains).mean()),
        "learned_share": float(fitted.expanded.mean()),
        "learned_net_gain": fitted.learned,
        "constant_net_gain": fitted.constant,
        "learned_p": fitted.p,
    }


def gate_of(
    options: GateOptions, alpha: float, weight: float, fitted: Fitted, dev: dict[str, Any]
) -> Gate:
    """Put the gate together; of a policy that is not learned, without its model."""
    about = {"weight": weight, "alpha": alpha, "cost": options.cost, "dev": dev}
    if options.mode == "global":
        return Gate("global", policy="always" if alpha else "never", **about)
    mode = "after" if options.mode == "after" else "before"
    if fitted.policy != "learned":
        return Gate(mode, policy=fitted.policy, **about)
    model = fitted.regression
    scales: list[float] = model.scales.tolist()
    digits = [_DIGITS - math.floor(math.log10(scale)) for scale in scales]
    return Gate(
        mode,
        policy="learned",
        features=AFTER if mode == "after" else BEFORE,
        means=tuple(map(round, model.means.tolist(), digits)),
        scales=tuple(map(round, scales, digits)),
        coefficients=tuple(round(value, _DIGITS) for value in model.coefficients.tolist()),
        intercept=round(model.intercept, _DIGITS),
        threshold=round(fitted.threshold, _DIGITS),
        **about,
    )
