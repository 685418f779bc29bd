"""The queries of an evaluation, measured again from its ranking and judgements, without trec_eval.

Only the relevant hits count, so rankings are read in batches and little of them is kept: memory does not
grow with their depth. The formulas are those of trec_eval: a gain of nDCG is the grade of the judgement.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expandr_core.errors import DataError
from expandr_core.evaluation.metrics import MEASURES, SCHEMA
from expandr_core.records import rows_with_ids
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

_ROWS_AT_ONCE = 65536
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Relevant:
    """The relevant passages of queries, and where they are ranked.

    Attributes:
        queries: how many.
        judged: the query of each relevant passage, by its number; the best grades of a query first.
        grades: of these passages.
        found: the query of each of them that is among the hits; the first hits of a query first.
        ranks: of these hits, from 1.
        gains: their grades.
    """

    queries: int
    judged: Integers
    grades: Floats
    found: Integers
    ranks: Integers
    gains: Floats

    def sums(self, query: Integers, values: Floats) -> Floats:
        """Add values up by query, in their order."""
        return np.bincount(query, weights=values, minlength=self.queries).astype(float)

    @property
    def numbers(self) -> Floats:
        """How many relevant passages each query has."""
        return self.sums(self.judged, np.ones(len(self.judged)))


def ndcg(relevant: Relevant, ranks: int) -> Floats:
    """Return the discounted cumulative gain of the first hits, as a share of the best possible."""
    inside = relevant.ranks <= ranks
    gains = relevant.gains[inside] / np.log2(relevant.ranks[inside] + 1)
    best = _places(relevant.judged)
    ideal = best <= ranks
    ideals = relevant.grades[ideal] / np.log2(best[ideal] + 1)
    return relevant.sums(relevant.found[inside], gains) / relevant.sums(
        relevant.judged[ideal], ideals
    )


def average_precision(relevant: Relevant, ranks: int) -> Floats:
    """Return the mean, over the relevant passages, of the precision at the rank of each."""
    precisions = _places(relevant.found) / relevant.ranks
    return relevant.sums(relevant.found, precisions) / relevant.numbers


def recall(relevant: Relevant, ranks: int) -> Floats:
    """Return the share of the relevant passages among the first hits."""
    inside = (relevant.ranks <= ranks).astype(float)
    return relevant.sums(relevant.found, inside) / relevant.numbers


def reciprocal_rank(relevant: Relevant, ranks: int) -> Floats:
    """Return 1 / the rank of the first relevant hit."""
    first = (_places(relevant.found) == 1) & (relevant.ranks <= ranks)
    return relevant.sums(relevant.found[first], 1 / relevant.ranks[first])


FORMULAS: dict[str, Callable[[Relevant, int], Floats]] = {  # by trec_eval's names
    "ndcg_cut": ndcg,
    "map": average_precision,
    "recall": recall,
    "recip_rank": reciprocal_rank,
}


def measured_again(store: Store, key: str) -> pa.Table:
    """Measure each query of an evaluation again, by its run.parquet and its judgements.

    Returns:
        query_id, cluster and METRICS, sorted by query_id.

    Raises:
        DataError: if the ranks in run.parquet do not follow the scores.
    """
    manifest = store.manifest(key)
    paths = {
        role: store.local(Artifact(**manifest["inputs"][role])) for role in ("queries", "qrels")
    }
    queries = pq.read_table(paths["queries"], columns=["query_id", "cluster"])
    qrels = rows_with_ids(paths["qrels"], "query_id", queries["query_id"].unique())
    qrels = qrels.filter(pc.field("relevance") > 0)
    ids = qrels["query_id"].unique().sort()
    relevant = relevant_hits(ids, qrels, store.local(_file(manifest, "run.parquet")))
    columns: dict[str, Any] = {"query_id": ids}
    for name, measure in MEASURES.items():
        family, _, cutoff = measure.measure.partition(".")
        columns[name] = FORMULAS[family](relevant, measure.ranks or int(cutoff or 0))
    names = (queries[name].to_pylist() for name in ("query_id", "cluster"))
    cluster_of = dict(zip(*names, strict=True))
    clusters = [cluster_of[query_id] for query_id in ids.to_pylist()]
    return pa.table(columns, schema=SCHEMA).add_column(
        1, "cluster", pa.array(clusters, pa.string())
    )


def _file(manifest: Mapping[str, Any], path: str) -> Artifact:
    """Refer to one file of an artifact."""
    [digest] = [file["sha256"] for file in manifest["files"] if file["path"] == path]
    return Artifact(key=manifest["key"], digest=digest, path=path)


def relevant_hits(ids: pa.Array, qrels: pa.Table, run: Path) -> Relevant:
    """Find the relevant passages among the hits.

    Args:
        ids: of the queries, sorted.
        qrels: the relevant passages only.
        run: a run.parquet.
    """
    passages = qrels["passage_id"].unique()
    query, grades = _index(qrels["query_id"], ids), qrels["relevance"].to_numpy().astype(float)
    pairs = query * len(passages) + _index(qrels["passage_id"], passages)
    order = np.argsort(pairs)
    known, grade_of = pairs[order], grades[order]
    found: list[tuple[Integers, Integers, Floats]] = []
    last: tuple[str, int, float] | None = None
    for batch in pq.ParquetFile(run).iter_batches(_ROWS_AT_ONCE, use_threads=False):
        last = _check_order(run, batch, last)
        passage = _index(batch["passage_id"], passages)
        candidates = np.flatnonzero(passage >= 0)
        asked = _index(batch["query_id"].take(candidates), ids)
        pair = np.where(asked >= 0, asked * len(passages) + passage[candidates], -1)
        at = np.minimum(np.searchsorted(known, pair), len(known) - 1)
        hit = known[at] == pair
        ranks = batch["rank"].to_numpy()[candidates[hit]].astype(np.int64)
        found.append((asked[hit], ranks, grade_of[at[hit]]))
    asked, ranks, gains = (np.concatenate(each) for each in zip(*found, strict=True)) if found else (
        np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))  # fmt: skip
    best, first = np.lexsort((-grades, query)), np.lexsort((ranks, asked))
    return Relevant(len(ids), query[best], grades[best], asked[first], ranks[first], gains[first])


def _index(values: pa.Array | pa.ChunkedArray, among: pa.Array) -> Integers:
    """Return where each value is; -1 if it is not there."""
    places = pc.call_function("index_in", [values], pc.SetLookupOptions(among))
    places = pc.fill_null(places, -1)
    return places.to_numpy(zero_copy_only=False).astype(np.int64)


def _places(query: Integers) -> Integers:
    """Number the rows of each query from 1; rows of a query stand together.

    >>> _places(np.array([3, 3, 5, 5, 5])).tolist()
    [1, 2, 1, 2, 3]
    """
    starts = np.flatnonzero(np.diff(query, prepend=-1))
    return np.arange(len(query)) - np.repeat(starts, np.diff(starts, append=len(query))) + 1


def _check_order(
    run: Path, batch: pa.RecordBatch, last: tuple[str, int, float] | None
) -> tuple[str, int, float] | None:
    """Check that the ranks of a query's hits count from 1 and follow the scores; return the last hit."""
    if not len(batch):
        return last
    query, ranks, scores = batch["query_id"], batch["rank"].to_numpy(), batch["score"].to_numpy()
    before = last or ("", 0, np.inf)
    same = np.append(
        query[0].as_py() == before[0],
        pc.call_function("equal", [query[1:], query[:-1]]).to_numpy(False),
    )
    expected = np.where(same, np.append(before[1], ranks[:-1]) + 1, 1)
    rises = same & (scores > np.append(before[2], scores[:-1]))
    wrong = np.flatnonzero((ranks != expected) | rises)
    if len(wrong):
        raise DataError(
            f"{run}: the ranks of query {query[int(wrong[0])].as_py()!r} do not follow its scores"
        )
    return query[-1].as_py(), int(ranks[-1]), float(scores[-1])
