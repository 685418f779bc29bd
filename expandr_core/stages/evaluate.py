"""Evaluate a retriever on queries and qrels, with or without expansions.

Inputs: `retriever` (a model folder), `embeddings` (from `encode`, by the same retriever), `queries`,
`qrels` and, unless their weight is 0, `expansions` (from `expand`). Writes

metrics.json        means over the queries with a relevant passage, and their number
per_query.parquet   query_id, cluster, and every metric of `evaluation.metrics.MEASURES`
run.parquet         query_id, passage_id, score, rank

A query whose expansions are all empty is searched alone, and counted.
"""

from typing import Self

from expandr_core.encoders.encode import Encoder, encoder_of
from expandr_core.errors import DataError
from expandr_core.evaluation.run_queries import count_identical_ids, measure
from expandr_core.options.base import Options
from expandr_core.options.evaluation import RankingOptions
from expandr_core.options.retriever import (
    EncodingOptions,
    FusionOptions,
    IndexOptions,
    RetrieverOptions,
)
from expandr_core.planning.workload import PlannedStep
from expandr_core.retrieval.expanded import ExpandedSearch
from expandr_core.retrieval.index import Index, open_index
from expandr_core.runtime.job import Job
from expandr_core.runtime.memory import search_memory

VERSION = 4
ROLE = "measure"
ISOLATION = "on-gpu"


class EvaluateOptions(Options):
    """How queries become vectors, and how deep the ranking goes."""

    encoding: EncodingOptions
    fusion: FusionOptions
    index: IndexOptions = IndexOptions()
    ranking: RankingOptions = RankingOptions()

    @classmethod
    def of(
        cls, options: RetrieverOptions, ranking: RankingOptions, expansion_weight: float
    ) -> Self:
        """Measure a retriever; weight 0 means queries alone, 1 expansions alone."""
        method = options.fusion.method if expansion_weight else "vector"
        fusion = FusionOptions(expansion_weight=expansion_weight, method=method)
        return cls(encoding=options.encoding, fusion=fusion, index=options.index, ranking=ranking)


OPTIONS = EvaluateOptions
BYTES_GROW_WITH = "queries"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the texts to encode, and the similarities to compute."""
    options: EvaluateOptions = step.options
    rankings = step.measured_texts if options.fusion.method == "rrf" else step.counts["queries"]
    similarities = rankings * step.inputs["embeddings"].counts["passages"]
    return {"texts": step.measured_texts, "similarities": similarities}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every query is measured."""
    return {"queries": step.rows("queries")}


def run(job: Job) -> None:
    """Search for as many queries together as fit into memory, and measure."""
    options: EvaluateOptions = job.options
    weight = options.fusion.expansion_weight
    if (weight > 0) != ("expansions" in job.inputs):
        raise DataError(
            f"expansion_weight {weight} {'needs' if weight else 'uses no'} expansions; give them, or "
            "set it to 0"
        )
    encoder = encoder_of(job, options.encoding)
    with job.all_shards("embeddings") as folders:
        _search_all(job, encoder, open_index(folders, encoder.model.device.type))


def _search_all(job: Job, encoder: Encoder, index: Index) -> None:
    options: EvaluateOptions = job.options
    ranking, memory_gb = options.ranking, search_memory(options.index.search_memory_gb)
    if index.dimensions != encoder.dimensions:
        raise DataError(
            f"the corpus was encoded with {index.dimensions} dimensions, the retriever has "
            f"{encoder.dimensions}; encode the corpus with the same retriever"
        )

    measure(job, ExpandedSearch(encoder, index, options.fusion, ranking, memory_gb).search)
    if ranking.identical_ids == "ignore":
        count_identical_ids(job, index.passage_ids)
