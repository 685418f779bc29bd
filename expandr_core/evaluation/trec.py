"""Run files in TREC's format, which trec_eval, pytrec_eval, ir_measures and ranx read.

A line is a hit: `query_id Q0 passage_id rank score tag`, separated by spaces. These tools ignore the
ranks and break ties in different ways (trec_eval by descending passage id, ir_measures by ascending id
for some measures). Written scores therefore decrease strictly within a query: a tied hit gets the next
lower number in trec_eval's single precision. Every tool then sees our order, and gives our metrics.
"""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from expandr_core.errors import DataError
from expandr_core.store.filesystems import partial_file

_ROWS_AT_ONCE = 8192


def write_trec(run: Path, target: Path, tag: str) -> int:
    """Write a run.parquet as a TREC run file; return the number of hits.

    Scores are written with as many digits as tell them apart in single precision.

    Args:
        run: what the stages evaluate and evaluate_bm25 write.
        target: where to write; replaced if it is there.
        tag: the system's name, without white space.

    Raises:
        DataError: if an id or the tag has white space or is empty, which the format cannot hold.
    """
    _require_word(tag, "the tag")
    hits = 0
    last: tuple[str, np.float32] = "", np.float32(0)
    with partial_file(target) as partial, partial.open("w", encoding="utf-8") as file:
        for batch in pq.ParquetFile(run).iter_batches(_ROWS_AT_ONCE):
            columns = (batch[name].to_pylist() for name in ("query_id", "passage_id", "rank"))
            scores = batch["score"].to_numpy()
            for query_id, passage_id, rank, score in zip(*columns, scores, strict=True):
                _require_word(query_id, "the query id")
                _require_word(passage_id, "the passage id")
                if query_id == last[0]:
                    score = min(score, _below(last[1]))
                last = query_id, score
                file.write(f"{query_id} Q0 {passage_id} {rank} {score} {tag}\n")
            hits += len(batch)
    return hits


def _below(score: np.float32) -> np.float32:
    """Return the next lower number; at 0 the next that a processor does not take for 0."""
    return min(np.nextafter(score, np.float32(-np.inf)), score - np.finfo(np.float32).tiny)


def _require_word(text: str, what: str) -> None:
    if not text or re.search(r"\s", text):
        raise DataError(
            f"{what} {text!r} is empty or has white space, which a TREC run file cannot hold; "
            "give the collection other ids"
        )
