"""Runs of the same queries, put together: a choice between two of them, or their ranks fused."""

import itertools
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from expandr_core.records import RUN
from expandr_core.retrieval.expanded import fuse_ranks
from expandr_core.retrieval.index import tie_order

Spans = Mapping[str, slice]


def spans(run: pa.Table) -> dict[str, slice]:
    """Return the rows of each query of a run, which stand together, the best first.

    >>> spans(pa.table({"query_id": ["q2", "q2", "q1"]}))
    {'q2': slice(0, 2, None), 'q1': slice(2, 3, None)}
    """
    ids = run["query_id"].to_numpy(zero_copy_only=False)
    starts = (
        [*np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]).tolist(), len(ids)] if len(ids) else []
    )
    return {str(ids[a]): slice(a, b) for a, b in itertools.pairwise(starts)}


def chosen(
    query_ids: list[str], alone: pa.Table, expanded: pa.Table, expands: NDArray[np.bool_]
) -> pa.Table:
    """Take for each query its hits from one of two runs.

    Args:
        query_ids: (queries,)
        alone: a run (see RUN).
        expanded: another.
        expands: (queries,) whether a query's hits are those of `expanded`.

    Returns:
        A run: the queries in their order.
    """
    at = {False: (alone, spans(alone)), True: (expanded, spans(expanded))}
    parts = [RUN.empty_table()]
    for query_id, expand in zip(query_ids, expands.tolist(), strict=True):
        run, rows = at[expand]
        parts.append(_of(run, rows, query_id))
    return pa.concat_tables(parts)


def fused(query_ids: list[str], alone: pa.Table, expanded: pa.Table, depth: int) -> pa.Table:
    """Fuse two runs by reciprocal rank (k = 60), as Exp4Fuse does (Liu and Zhang, 2025).

    Args:
        query_ids: (queries,)
        alone: a run (see RUN).
        expanded: another.
        depth: hits to keep for each query.

    Returns:
        A run: the queries in their order. Scores are rounded to float32, ties ordered by descending id.
    """
    runs = [(run, spans(run)) for run in (alone, expanded)]
    parts = [RUN.empty_table()]
    for query_id in query_ids:
        hits = pa.concat_tables([_of(run, rows, query_id) for run, rows in runs])
        ids = hits["passage_id"].unique()
        positions = pc.call_function("index_in", [hits["passage_id"]], pc.SetLookupOptions(ids))
        best, scores = fuse_ranks(
            positions.to_numpy().astype(np.int64), hits["rank"].to_numpy(), tie_order(ids), depth
        )
        ranks = np.arange(1, len(best) + 1, dtype=np.int32)
        columns = [pa.repeat(query_id, len(best)), ids.take(pa.array(best)), scores, ranks]
        parts.append(pa.table(columns, schema=RUN))
    return pa.concat_tables(parts)


def _of(run: pa.Table, rows: Spans, query_id: str) -> pa.Table:
    """Return a query's hits; none if it has none."""
    own = rows.get(query_id, slice(0, 0))
    return run.slice(own.start, own.stop - own.start).cast(RUN)
