"""Evaluate BM25 on queries and qrels, with or without expansions.

Inputs: `index` (from the stage bm25_index), `queries`, `qrels` and, optionally, `expansions`, which are
appended to the query, or to so many repetitions of it (Query2Doc: Wang et al., 2023). With `rm3` also
`corpus`, whose terms expand the query. Writes the same files as `evaluate`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Self

import pyarrow as pa

from expandr_core.evaluation.run_queries import count_identical_ids, measure
from expandr_core.options.base import Options, Positive, added
from expandr_core.options.data import IdenticalIds
from expandr_core.options.evaluation import EvaluationOptions, RankingOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.records import passages_in, rows_with_ids
from expandr_core.retrieval.bm25 import open_bm25
from expandr_core.retrieval.rm3 import HITS, expanded_queries
from expandr_core.runtime.job import Job

VERSION = 4
ROLE = "measure"
ISOLATION = "never"


class EvaluateBM25Options(Options):
    """How the query is read, and how deep the ranking goes."""

    ranking: RankingOptions = RankingOptions()
    query_repeats: Positive = added(1)
    rm3: bool = added(False)

    @classmethod
    def of(
        cls,
        options: EvaluationOptions,
        identical_ids: IdenticalIds,
        expanded: bool,
        rm3: bool = False,
    ) -> Self:
        """Measure on a dataset with this treatment of identical ids, with or without expansions."""
        ranking = RankingOptions.of(options, identical_ids)
        repeats = options.bm25_query_repeats if expanded else 1
        return cls(ranking=ranking, query_repeats=repeats, rm3=rm3)


OPTIONS = EvaluateBM25Options
BYTES_GROW_WITH = "queries"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the texts to search for, and the scores to sort."""
    scores = step.counts["queries"] * step.inputs["index"].counts["passages"]
    return {"texts": step.measured_texts, "scores": scores}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every query is measured."""
    return {"queries": step.rows("queries")}


def run(job: Job) -> None:
    """Search block by block, and measure."""
    options: EvaluateBM25Options = job.options
    index = open_bm25(job.inputs["index"])
    ranking = options.ranking

    def search_with_feedback(block: pa.Table) -> pa.Table:
        query_ids, queries = block["query_id"].combine_chunks(), block["query"].to_pylist()
        first = index.search(query_ids, queries, HITS, ranking.identical_ids)
        rows = rows_with_ids(job.inputs["corpus"], "passage_id", first["passage_id"].unique())
        corpus = {passage.passage_id: passage.content for passage in passages_in(rows)}
        weights = expanded_queries(index, query_ids.to_pylist(), queries, first, corpus)
        return index.search_weighted(query_ids, weights, ranking.depth, ranking.identical_ids)

    def search_block(block: pa.Table) -> pa.Table:
        if options.rm3:
            return search_with_feedback(block)
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
        count_identical_ids(job, index.passage_ids)
