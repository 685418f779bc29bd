"""Evaluate a retriever on queries and qrels, with or without expansions.

Inputs: `retriever` (a model folder), `embeddings` (from `encode`, by the same retriever), `queries`,
`qrels` and, unless their weight is 0, `expansions` (from `expand`). Writes

metrics.json        means over the queries with a relevant passage, and their number
per_query.parquet   query_id, cluster, and every metric of `evaluation.metrics.MEASURES`
run.parquet         query_id, passage_id, score, rank

The vectors of several expansions are averaged. A query whose expansions are all empty is searched with
its plain vector, and counted.
"""

from collections.abc import Callable
from typing import Self

import numpy as np
import pyarrow as pa

from expandr_core.encoders.encode import Encoder, Vectors, encode_expanded, encoder_of
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
from expandr_core.retrieval.exact import Index, open_index, search
from expandr_core.runtime.job import Job

VERSION = 4
ROLE = "measure"
ISOLATION = "on-gpu"
_ENCODED_AT_ONCE = 256


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
        fusion = FusionOptions(expansion_weight=expansion_weight)
        return cls(encoding=options.encoding, fusion=fusion, index=options.index, ranking=ranking)


OPTIONS = EvaluateOptions
BYTES_GROW_WITH = "queries"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the texts to encode, and the similarities to compute."""
    similarities = step.counts["queries"] * step.inputs["embeddings"].counts["passages"]
    return {"texts": step.measured_texts, "similarities": similarities}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every query is measured."""
    return {"queries": step.rows("queries")}


def run(job: Job) -> None:
    """Search block by block, and measure."""
    options: EvaluateOptions = job.options
    weight = options.fusion.expansion_weight
    if (weight > 0) != ("expansions" in job.inputs):
        raise DataError(
            f"expansion_weight {weight} {'needs' if weight else 'uses no'} expansions; give them, or "
            "set it to 0"
        )
    encoder = encoder_of(job, options.encoding)
    with job.all_shards("embeddings") as folders:
        _search_all(job, encoder, open_index(folders))


def _search_all(job: Job, encoder: Encoder, index: Index) -> None:
    options: EvaluateOptions = job.options
    weight, ranking = options.fusion.expansion_weight, options.ranking
    if index.dimensions != encoder.dimensions:
        raise DataError(
            f"the corpus was encoded with {index.dimensions} dimensions, the retriever has "
            f"{encoder.dimensions}; encode the corpus with the same retriever"
        )

    def search_block(block: pa.Table, report: Callable[[int], None]) -> pa.Table:
        vectors = np.empty((len(block), encoder.dimensions), dtype=np.float32)
        for start in range(0, len(block), _ENCODED_AT_ONCE):
            part = block.slice(start, _ENCODED_AT_ONCE)
            vectors[start : start + len(part)] = _vectors(encoder, part, weight)
            report(start + len(part))
        query_ids = block["query_id"].combine_chunks()
        return search(
            query_ids,
            vectors,
            index,
            ranking.depth,
            options.index.search_memory_gb,
            ranking.identical_ids,
        )

    measure(job, search_block)
    if ranking.identical_ids == "ignore":
        count_identical_ids(job, index.passage_ids)


def _vectors(encoder: Encoder, block: pa.Table, weight: float) -> Vectors:
    """Return the (queries, dimensions) search vectors of a block."""
    return encode_expanded(
        encoder, block["query"].to_pylist(), block["expansions"].to_pylist(), weight
    )
