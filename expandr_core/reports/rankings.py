"""What rankings say of some passages; read batch by batch, as they are the largest files of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_ROWS_AT_ONCE = 65536


def relevant(qrels: Path) -> dict[str, set[str]]:
    """Return the relevant passages of each query."""
    rows = pq.read_table(qrels, filters=[("relevance", ">", 0)])
    found: dict[str, set[str]] = {}
    for query_id, passage_id in zip(
        rows["query_id"].to_pylist(), rows["passage_id"].to_pylist(), strict=True
    ):
        found.setdefault(query_id, set()).add(passage_id)
    return found


def best_positives(run: Path, positives: Mapping[str, set[str]]) -> dict[str, tuple[float, int]]:
    """Return score and rank of each query's first relevant passage; queries without one are left out.

    Args:
        run: a run.parquet.
        positives: relevant passages by query.
    """
    pairs = [(query_id, passage) for query_id, own in positives.items() for passage in own]
    names, columns = ("query_id", "passage_id"), list(zip(*pairs, strict=True)) or [[], []]
    wanted = pa.table([pa.array(column, pa.string()) for column in columns], names=names)
    found: dict[str, tuple[float, int]] = {}
    for batch in pq.ParquetFile(run).iter_batches(_ROWS_AT_ONCE, use_threads=False):
        hits = pa.Table.from_batches([batch]).join(wanted, list(names), join_type="inner")
        for row in hits.to_pylist():
            before = found.get(row["query_id"])
            if before is None or row["rank"] < before[1]:
                found[row["query_id"]] = row["score"], row["rank"]
    return found


def top_hits(run: Path, query_ids: list[str], depth: int) -> dict[str, list[dict[str, Any]]]:
    """Return the first hits of some queries, by query: rank, passage_id and score."""
    found: dict[str, list[dict[str, Any]]] = {query_id: [] for query_id in query_ids}
    wanted = pa.array(query_ids, pa.string())
    for batch in pq.ParquetFile(run).iter_batches(_ROWS_AT_ONCE, use_threads=False):
        shown = (pc.field("rank") <= depth) & pc.field("query_id").isin(wanted)
        for row in pa.Table.from_batches([batch]).filter(shown).to_pylist():
            found[row.pop("query_id")].append(row)
    return {query_id: sorted(hits, key=lambda hit: hit["rank"]) for query_id, hits in found.items()}
