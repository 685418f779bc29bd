"""Measure a search on queries and qrels, with memory that does not grow with the number of queries.

Queries are joined with their expansions by id, so the order of shards does not matter; the run is
searched, written and measured block by block.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expandr_core.errors import DataError
from expandr_core.evaluation.metrics import mean_metrics, score_queries
from expandr_core.evaluation.render import counted
from expandr_core.records import RUN, rows_with_ids
from expandr_core.runtime.job import Job

log = logging.getLogger(__name__)
QUERIES_AT_ONCE = 1000
LEFT_OUT = "identical_ids"  # counts
LEFT_OUT_RELEVANT = "identical_ids/relevant"
Search = Callable[[Iterable[pa.Table], Callable[[int], None]], Iterable[tuple[pa.Table, pa.Table]]]


def measure(job: Job, search: Search) -> None:
    """Search for all queries of the job; write run.parquet, per_query.parquet and metrics.json.

    Args:
        job: with inputs `queries` and `qrels`, and perhaps `expansions`.
        search: yields each block of queries with its run, and reports how many queries it has read.

    Raises:
        DataError: if a query has no expansion, or none has a relevant passage.
    """
    total = pq.read_metadata(job.inputs["queries"]).num_rows
    tables, done = [], 0
    written: Future[None] | None = None

    def report(searched: int) -> None:
        job.progress(searched, total, "queries")

    report(0)  # everything is loaded
    with (
        pq.ParquetWriter(job.out / "run.parquet", RUN, compression="zstd") as writer,
        ThreadPoolExecutor(1, "writer") as beside,
    ):
        try:
            for block, run in search(query_blocks(job), report):
                if written:
                    written.result()  # one run at a time, as it takes memory
                written = beside.submit(writer.write_table, run)
                tables.append(_measure_block(job, block, run))
                done += len(block)
        finally:
            if written:
                written.result()
    if done != total:
        raise DataError(
            f"{total} queries were searched {done} times; the shards of the expansions overlap: "
            "expand the queries again"
        )
    per_query = pa.concat_tables(tables).sort_by("query_id")
    if not len(per_query):
        raise DataError("no query has a relevant passage; there is nothing to measure")
    pq.write_table(per_query, job.out / "per_query.parquet", compression="zstd")
    metrics = mean_metrics(per_query) | {"queries": len(per_query)}
    (job.out / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False))
    job.counts |= metrics | {"queries_without_positive": total - len(per_query)}
    log.info("nDCG@10 %.4f on %d queries", metrics["ndcg_at_10"], len(per_query))


def count_identical_ids(job: Job, passage_ids: pa.Array | pa.ChunkedArray) -> None:
    """Count the passages left out because they have the query's id, and the relevant ones among them."""
    queries = pq.read_table(job.inputs["queries"], columns=["query_id"])
    both = queries.filter(pc.field("query_id").isin(passage_ids))["query_id"]
    if not len(both):
        return
    qrels = rows_with_ids(job.inputs["qrels"], "query_id", both.unique())
    itself = pc.field("query_id") == pc.field("passage_id")
    relevant = qrels.filter(itself & (pc.field("relevance") > 0))
    job.counts |= {LEFT_OUT: len(both), LEFT_OUT_RELEVANT: len(relevant)}
    log.warning("%s", identical_ids_warning(job.counts))


def identical_ids_warning(counts: Mapping[str, float]) -> str:
    """Say how many passages the rule about identical ids left out; empty if none.

    >>> print(identical_ids_warning({"identical_ids": 1, "identical_ids/relevant": 1})[:82])
    the passage with the query's id is left out, as in beir, of the results of 1 query
    >>> identical_ids_warning({})
    ''
    """
    if not counts.get(LEFT_OUT):
        return ""
    return (
        "the passage with the query's id is left out, as in beir, of the results of "
        f"{counted(counts[LEFT_OUT], 'query', 'queries')}, a relevant one of "
        f"{counts[LEFT_OUT_RELEVANT]:.0f}; if the ids coincide by chance, set evaluate.identical_ids to "
        "'keep'"
    )


def _measure_block(job: Job, block: pa.Table, run: pa.Table) -> pa.Table:
    """Measure the run of one block."""
    qrels = rows_with_ids(job.inputs["qrels"], "query_id", block["query_id"].unique())
    return _with_clusters(score_queries(qrels, run), block)


def _with_clusters(scores: pa.Table, block: pa.Table) -> pa.Table:
    """Add the column cluster, without Arrow's join, which allocates twenty times the result."""
    cluster_of = dict(zip(block["query_id"].to_pylist(), block["cluster"].to_pylist(), strict=True))
    clusters = [cluster_of[query_id] for query_id in scores["query_id"].to_pylist()]
    return scores.add_column(1, "cluster", pa.array(clusters, pa.string()))


def query_blocks(job: Job) -> Iterator[pa.Table]:
    """Yield the queries in blocks: query_id, query, cluster, and expansions (a list of texts).

    Empty expansions are left out and counted. A query without any other, or in a job without the
    input `expansions`, has an empty list.

    Raises:
        DataError: naming queries that have no row in the expansions.
    """
    columns = ["query_id", "query", "cluster"]
    if "expansions" not in job.inputs:
        for batch in pq.ParquetFile(job.inputs["queries"]).iter_batches(
            QUERIES_AT_ONCE, columns=columns
        ):
            none = pa.array([[]] * len(batch), pa.list_(pa.string()))
            yield pa.Table.from_batches([batch]).append_column("expansions", none)
        return
    _require_expansions(job)
    job.counts |= {"empty_expansions": 0, "queries_without_expansion": 0}
    for texts in _expansion_blocks(job):
        ids = texts["query_id"].unique()
        queries = rows_with_ids(job.inputs["queries"], "query_id", ids).select(columns)
        if len(queries):
            yield _join(job, queries, texts)


def _require_expansions(job: Job) -> None:
    """Check that every query has an expansion, before any work."""
    missing = pq.read_table(job.inputs["queries"], columns=["query_id"])
    total = len(missing)
    for folder in job.shards("expansions"):
        ids = pq.read_table(folder / "expansions.parquet", columns=["query_id"])["query_id"]
        missing = missing.filter(~pc.field("query_id").isin(ids.unique()))
    if len(missing):
        first = ", ".join(repr(query_id) for query_id in missing["query_id"][:3].to_pylist())
        raise DataError(
            f"{len(missing)} of {total} queries have no expansion, such as {first}; expand the "
            "same queries that are evaluated"
        )


def _expansion_blocks(job: Job) -> Iterator[pa.Table]:
    """Yield the rows of several shards together, so that one pass over the corpus serves many."""
    tables: list[pa.Table] = []
    queries = 0
    for folder in job.shards("expansions"):
        path = folder / "expansions.parquet"
        table = pq.read_table(path, columns=["query_id", "sample", "text"])
        tables.append(table)
        queries += len(table["query_id"].unique())
        if queries >= QUERIES_AT_ONCE:
            yield pa.concat_tables(tables)
            tables, queries = [], 0
    if tables:
        yield pa.concat_tables(tables)


def _join(job: Job, queries: pa.Table, texts: pa.Table) -> pa.Table:
    """Add to each query its expansions that are not empty, in the order of the samples."""
    by_query: dict[str, list[str]] = {query_id: [] for query_id in queries["query_id"].to_pylist()}
    rows = texts.sort_by([("query_id", "ascending"), ("sample", "ascending")])
    for query_id, text in zip(rows["query_id"].to_pylist(), rows["text"].to_pylist(), strict=True):
        if query_id not in by_query:
            continue  # expanded, but not evaluated here
        if text.strip():
            by_query[query_id].append(text)
        else:
            job.counts["empty_expansions"] += 1
    job.counts["queries_without_expansion"] += sum(not found for found in by_query.values())
    column = pa.array(by_query.values(), pa.list_(pa.string()))
    return queries.append_column("expansions", column)
