"""Evaluate a retriever on queries and judgements, with or without expansions.

Inputs: `retriever` (a model folder), `embeddings` (from the stage encode, of the same retriever),
`queries`, `qrels`, and unless the mode is "query" `expansions` (from the stage expand). Writes

metrics.json        the means over queries that have a relevant passage, and their number
per_query.parquet   query_id, cluster, ndcg_at_10, map, recall_at_100, mrr_at_10
run.parquet         query_id, passage_id, score, rank

Several expansions of a query count as the mean of their vectors. A query whose expansions are all
empty is searched with its own vector, and counted.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from expandr_core.encoder import Encoder, Vectors, encoder_of, fuse, unit
from expandr_core.errors import DataError
from expandr_core.evaluation import measure
from expandr_core.options import Options, Positive, runtime
from expandr_core.search import open_index, search
from expandr_core.stage import Job

VERSION = 1
ROLE = "measure"
ISOLATION = "on-gpu"
_ENCODED_AT_ONCE = 256
Mode = Literal["query", "expansion", "fused"]


class OPTIONS(Options):
    """What is searched with, and how deep."""

    mode: Mode = Field(description="Search with the query, its expansion, or the mean of both.")
    depth: Positive = Field(default=1000, description="Passages kept per query.")
    normalize: bool = Field(description="Scale vectors to length 1.")
    max_tokens: Positive = Field(description="Longer texts are cut.")
    batch_size: Positive = runtime(128, description="Texts encoded at once.")
    block_size: Positive = runtime(100_000, description="Passages scored at once.")


def run(job: Job) -> None:
    """Search for the queries block by block, and measure."""
    options: OPTIONS = job.options
    if (options.mode == "query") == ("expansions" in job.inputs):
        raise DataError(
            f"mode {options.mode!r} {'uses no' if options.mode == 'query' else 'needs'} expansions"
        )
    encoder = encoder_of(job)
    index = open_index(job.shards("embeddings"))
    if index.dimensions != encoder.dimensions:
        raise DataError(
            f"the corpus was encoded with {index.dimensions} dimensions, the retriever has "
            f"{encoder.dimensions}; encode the corpus with the same retriever"
        )

    def search_block(block: pa.Table, report: Callable[[int], None]) -> pa.Table:
        vectors = np.empty((len(block), encoder.dimensions), dtype=np.float32)
        for start in range(0, len(block), _ENCODED_AT_ONCE):
            part = block.slice(start, _ENCODED_AT_ONCE)
            vectors[start : start + len(part)] = search_vectors(encoder, part, options.mode)
            report(start + len(part))
        query_ids = block["query_id"].combine_chunks()
        return search(query_ids, vectors, index, options.depth, options.block_size)

    measure(job, search_block)


def search_vectors(encoder: Encoder, block: pa.Table, mode: Mode) -> Vectors:
    """Return what to search with for each query of a block.

    Args:
        encoder: of the retriever.
        block: with the columns query and expansions; see `evaluation.query_blocks`.
        mode: "query", "expansion", or "fused" for the mean of both.

    Returns:
        (queries, dimensions); the query's own vector where there is no expansion.
    """
    texts = block["expansions"].combine_chunks()
    counts = texts.value_lengths().to_numpy()
    written = counts > 0
    if mode == "expansion":  # queries are needed only in place of absent expansions
        queries = np.zeros((len(block), encoder.dimensions), dtype=np.float32)
        alone = np.flatnonzero(~written)
        queries[alone] = encoder.encode(block["query"].take(pa.array(alone)).to_pylist())
    else:
        queries = encoder.encode(block["query"].to_pylist())
    if mode == "query" or not written.any():
        return queries
    vectors = encoder.encode(texts.flatten().to_pylist())
    expansions = np.zeros_like(queries)
    np.add.at(expansions, np.repeat(np.arange(len(block)), counts), vectors)
    expansions /= np.maximum(counts, 1)[:, None].astype(np.float32)
    expansions = unit(expansions) if encoder.normalize else expansions
    if mode == "expansion":
        return np.where(written[:, None], expansions, queries)
    return fuse(queries, expansions, written, encoder.normalize)
