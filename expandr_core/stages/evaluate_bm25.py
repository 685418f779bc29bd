"""Evaluate BM25 on queries and judgements, with or without expansions.

Inputs: `corpus`, `queries`, `qrels`, and perhaps `expansions`, which are then appended to the query's
text. Writes what the stage evaluate writes. How terms are made: see `expandr_core.retrieval.bm25`.
"""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from expandr_core.data.beir_layout import Passage
from expandr_core.evaluation.run_queries import count_identical_ids, measure
from expandr_core.options.base import Options, Positive, added
from expandr_core.options.data import IdenticalIds
from expandr_core.options.evaluation import Language
from expandr_core.retrieval.bm25 import BM25
from expandr_core.runtime.job import Job

VERSION = 3
ROLE = "measure"
ISOLATION = "never"


class EvaluateBM25Options(Options):
    """How BM25 weighs terms."""

    depth: Positive = Field(default=1000, description="Passages kept per query.")
    k1: float = Field(default=1.5, ge=0, description="How slowly repetitions of a term saturate.")
    b: float = Field(default=0.75, ge=0, le=1, description="How much long passages are held back.")
    identical_ids: IdenticalIds = added(
        "ignore", description="What becomes of a passage with the query's id."
    )
    language: Language = added("english", description="Whose stemmer and stop words are used.")


OPTIONS = EvaluateBM25Options


def run(job: Job) -> None:
    """Index the corpus, search for the queries block by block, and measure."""
    options: EvaluateBM25Options = job.options
    ids = pq.read_table(job.inputs["corpus"], columns=["passage_id"])["passage_id"]
    batches = pq.ParquetFile(job.inputs["corpus"]).iter_batches(
        columns=["passage_id", "title", "text"]
    )
    passages = (Passage(**row).content for batch in batches for row in batch.to_pylist())
    index = BM25(ids.combine_chunks(), passages, options.k1, options.b, options.language)

    def search_block(block: pa.Table, report: Callable[[int], None]) -> pa.Table:
        rows = zip(block["query"].to_pylist(), block["expansions"].to_pylist(), strict=True)
        texts = [" ".join([query, *expansions]) for query, expansions in rows]
        query_ids = block["query_id"].combine_chunks()
        return index.search(query_ids, texts, options.depth, options.identical_ids)

    measure(job, search_block)
    if options.identical_ids == "ignore":
        count_identical_ids(job, ids)
