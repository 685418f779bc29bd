"""nDCG@10, MAP, Recall@100 and MRR@10 of each query, by pytrec_eval.

nDCG@10 and Recall@100 equal beir's. MAP covers the whole run: beir's MAP@k, with the run's depth as k.
MRR@10 is trec_eval's reciprocal rank in the first ten hits; ties are ordered by descending passage id,
and every grade above 0 is relevant (beir keeps ties in their order of arrival). Queries without a
relevant passage have no metric; beir counts them as 0.
"""

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class Measure(NamedTuple):
    """A metric.

    Attributes:
        title: as reports show it.
        measure: its name in trec_eval, with the cutoff after a dot.
        ranks: how many of the first hits it sees; None for all of them.
    """

    title: str
    measure: str
    ranks: int | None = None


MEASURES = {  # to add one, add a line, and raise VERSION of the stages evaluate, evaluate_bm25, compare
    "ndcg_at_10": Measure("nDCG@10", "ndcg_cut.10"),
    "map": Measure("MAP", "map"),
    "recall_at_100": Measure("Recall@100", "recall.100"),
    "mrr_at_10": Measure("MRR@10", "recip_rank", ranks=10),
}
METRICS = tuple(MEASURES)
HEADLINE = "ndcg_at_10"  # that systems are tested on
SCHEMA = pa.schema([("query_id", pa.string()), *((name, pa.float64()) for name in METRICS)])
_QUERIES_AT_ONCE = 250  # pytrec_eval needs dictionaries, some 200 bytes per hit


def score_queries(qrels: pa.Table, run: pa.Table) -> pa.Table:
    """Measure each query that has a relevant passage.

    Args:
        qrels: query_id, passage_id, relevance; above 0 is relevant, and a grade for nDCG.
        run: query_id, passage_id, score, rank. A query without hits counts as 0.

    Returns:
        query_id and METRICS, sorted by query_id.

    Here the only relevant passage is at rank 2, so nDCG@10 is 1/log2(3):

    >>> qrels = pa.table({"query_id": ["q"], "passage_id": ["b"], "relevance": [1]})
    >>> run = pa.table({"query_id": ["q", "q"], "passage_id": ["a", "b"], "score": [2.0, 1.0],
    ...                 "rank": [1, 2]})
    >>> {name: round(value[0], 4) for name, value in score_queries(qrels, run).to_pydict().items()
    ...  if name != "query_id"}
    {'ndcg_at_10': 0.6309, 'map': 0.5, 'recall_at_100': 1.0, 'mrr_at_10': 0.5}
    """
    ids = qrels.filter(pc.field("relevance") > 0)["query_id"].unique().sort()
    run = _until_last_relevant(qrels, run, ids)
    tables = [SCHEMA.empty_table()]
    for start in range(0, len(ids), _QUERIES_AT_ONCE):
        tables.append(_score(qrels, run, ids[start : start + _QUERIES_AT_ONCE]))
    return pa.concat_tables(tables)


def _until_last_relevant(qrels: pa.Table, run: pa.Table, ids: pa.Array) -> pa.Table:
    """Leave out what is behind the last relevant hit of each query, since it changes no metric.

    Args:
        qrels: see `score_queries`.
        run: see `score_queries`.
        ids: the queries with a relevant passage; others have no hits in the result.
    """
    relevant = qrels.filter(pc.field("relevance") > 0)
    passages = relevant["passage_id"].unique()

    def pairs(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        queries, places = _places(table["query_id"], ids), _places(table["passage_id"], passages)
        return queries, np.where(places >= 0, queries * len(passages) + places, -1)

    queries, hits = pairs(run)
    found = (hits >= 0) & np.isin(hits, pairs(relevant)[1])
    scores = run["score"].to_numpy()
    least = np.full(len(ids) + 1, np.inf)  # the last is that of other queries
    np.minimum.at(least, queries[found], scores[found])
    return run.filter(pa.array(scores >= least[queries]))


def _places(values: pa.ChunkedArray, among: pa.Array) -> NDArray[np.int64]:
    """Return the place of each value in an array, or -1."""
    lookup = pc.SetLookupOptions(value_set=among)
    found = pc.call_function("index_in", [values], lookup)
    return found.fill_null(-1).to_numpy().astype(np.int64)


def _score(qrels: pa.Table, run: pa.Table, ids: pa.Array) -> pa.Table:
    import pytrec_eval

    judged = _nested(qrels.filter(pc.field("query_id").isin(ids)), "relevance")
    run = run.filter(pc.field("query_id").isin(ids))
    columns: dict[str, list[Any]] = {"query_id": ids.to_pylist()}
    for ranks in dict.fromkeys(measure.ranks for measure in MEASURES.values()):
        seen = run if ranks is None else run.filter(pc.field("rank") <= ranks)
        measures = {n: each.measure for n, each in MEASURES.items() if each.ranks == ranks}
        evaluator = pytrec_eval.RelevanceEvaluator(judged, set(measures.values()))
        scores = evaluator.evaluate(_nested(seen, "score"))
        for name, measure in measures.items():
            key = measure.replace(".", "_")
            columns[name] = [scores[q][key] if q in scores else 0.0 for q in columns["query_id"]]
    return pa.table(columns, schema=SCHEMA)


def _nested(table: pa.Table, value: str) -> dict[str, dict[str, Any]]:
    """Return {query_id: {passage_id: value}}."""
    nested: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    columns = (table[name].to_pylist() for name in ("query_id", "passage_id", value))
    for query_id, passage_id, number in zip(*columns, strict=True):
        nested[query_id][passage_id] = number
    return dict(nested)


def mean_metrics(per_query: pa.Table) -> dict[str, float]:
    """Average each metric over the queries."""
    return {name: float(np.mean(per_query[name].to_numpy())) for name in METRICS}
