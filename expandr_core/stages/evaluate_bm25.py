"""Evaluate BM25 on queries and qrels, with or without expansions.

Inputs: `corpus`, `queries`, `qrels` and, optionally, `expansions`, which are appended to the query, or
to so many repetitions of it (Query2Doc: Wang et al., 2023). Writes the same files as `evaluate`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.evaluation.run_queries import count_identical_ids, measure
from expandr_core.options.base import Options, Positive, added
from expandr_core.options.data import IdenticalIds
from expandr_core.options.evaluation import EvaluationOptions, Language, RankingOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.records import Passage, passages_in
from expandr_core.retrieval.bm25 import BM25
from expandr_core.runtime.job import Job

VERSION = 4
ROLE = "measure"
ISOLATION = "never"


class EvaluateBM25Options(Options):
    """How texts become terms, and how deep the ranking goes."""

    ranking: RankingOptions = RankingOptions()
    language: Language = "english"
    query_repeats: Positive = added(1)

    @classmethod
    def of(cls, options: EvaluationOptions, identical_ids: IdenticalIds, expanded: bool) -> Self:
        """Measure on a dataset with this treatment of identical ids, with or without expansions."""
        ranking = RankingOptions.of(options, identical_ids)
        repeats = options.bm25_query_repeats if expanded else 1
        return cls(ranking=ranking, language=options.bm25_language, query_repeats=repeats)


OPTIONS = EvaluateBM25Options
BYTES_GROW_WITH = "queries"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the texts to search for, and the passages to index."""
    return {"texts": step.measured_texts, "passages": step.rows("corpus")}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every query is measured."""
    return {"queries": step.rows("queries")}


def run(job: Job) -> None:
    """Index the corpus, search block by block, and measure."""
    options: EvaluateBM25Options = job.options
    ids = pq.read_table(job.inputs["corpus"], columns=["passage_id"])["passage_id"]
    batches = pq.ParquetFile(job.inputs["corpus"]).iter_batches(columns=list(Passage._fields))
    passages = (passage.content for batch in batches for passage in passages_in(batch))
    index = BM25(ids.combine_chunks(), passages, language=options.language)
    ranking = options.ranking

    def search_block(block: pa.Table) -> pa.Table:
        rows = zip(block["query"].to_pylist(), block["expansions"].to_pylist(), strict=True)
        repeats = options.query_repeats
        texts = [
            " ".join([*[query] * (repeats if expansions else 1), *expansions])
            for query, expansions in rows
        ]
        query_ids = block["query_id"].combine_chunks()
        return index.search(query_ids, texts, ranking.depth, ranking.identical_ids)

    def search(
        blocks: Iterable[pa.Table], report: Callable[[int], None]
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        done = 0
        for block in blocks:
            yield block, search_block(block)
            report(done := done + len(block))

    measure(job, search)
    if ranking.identical_ids == "ignore":
        count_identical_ids(job, ids)
