"""A collection: passages, queries and qrels; the rules for its rows, whatever format they come in."""

import json
import re
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from expandr_core.data.fields import BadRow, filled_field, text_field
from expandr_core.data.rows import RawFile, Reader, write_parquet
from expandr_core.errors import DataError
from expandr_core.records import PASSAGES, QRELS, QUERIES, Passage

MOST_RELEVANT = 1000  # trec_eval keeps a table of all grades up to the greatest for each query


class Query(NamedTuple):
    """A row of the queries; `cluster` is None if its metadata names none."""

    query_id: str
    text: str
    cluster: str | None
    line: int


class Qrel(NamedTuple):
    """A row of the qrels."""

    query_id: str
    passage_id: str
    relevance: int
    line: int


class Collection(NamedTuple):
    """A dataset as a format reads it.

    Attributes:
        queries: by id.
        qrels: of one split; their passages may be missing from the corpus.
        passages: the corpus, to be read once.
        lines: of the passages by id, filled while these are read.
        queries_file: where queries are looked up, for messages.
        qrels_file: where qrels are looked up, for messages.
    """

    queries: dict[str, Query]
    qrels: list[Qrel]
    passages: Iterator[Passage]
    lines: dict[str, int]
    queries_file: RawFile
    qrels_file: RawFile


def _new_id(record: dict, line: int, lines: dict[str, int]) -> str:
    """Return a row's id and note its line; an id that was there before is a bad row."""
    if record.get("_id") == "":
        raise BadRow("_id is empty", "give every row an id of its own")
    identifier = text_field(record, "_id")
    if identifier in lines:
        case = f"{identifier!r}, first on line {lines[identifier]}, again on line {line}"
        raise BadRow("duplicate _id", "give every row an id of its own", case)
    lines[identifier] = line
    return identifier


def passage_of(record: dict[str, Any], line: int, lines: dict[str, int]) -> Passage:
    """Return a row of the corpus; its line is added to `lines`."""
    title, text = text_field(record, "title", ""), text_field(record, "text")
    return Passage(_new_id(record, line, lines), title, text)


def query_of(
    record: dict[str, Any], line: int, lines: dict[str, int], cluster_by: str = ""
) -> Query:
    """Return a row of the queries; its line is added to `lines`."""
    text = filled_field(record, "text")
    query_id = _new_id(record, line, lines)
    if not cluster_by:
        return Query(query_id, text, query_id, line)
    metadata = record.get("metadata")
    value = metadata.get(cluster_by) if isinstance(metadata, dict) else None
    return Query(query_id, text, _cluster(value, cluster_by), line)


def _cluster(value: Any, field: str) -> str | None:
    """Return the cluster that a query's metadata names; pandas writes 3 as 3.0 beside missing ones."""
    if value is None or value == "" or value != value:
        return None
    if not isinstance(value, str | int | float):
        case = json.dumps(value)[:40]
        raise BadRow(f"{field} is neither a string nor a number", "name one cluster", case)
    return str(int(value)) if isinstance(value, float) and float.is_integer(value) else str(value)


class QrelTable:
    """The qrels of one split, whose queries must be known; the last of one pair counts."""

    def __init__(self, reader: Reader, file: str, queries: Container[str], strict: bool = True):
        """Start an empty table.

        Args:
            reader: counts repeated judgements.
            file: name of the file, for the counts.
            queries: ids of the known queries.
            strict: two different scores of one pair are a bad row.
        """
        self._reader, self._file, self._queries, self._strict = reader, file, queries, strict
        self._rows: dict[tuple[str, str], Qrel] = {}

    def add(self, query_id: str, passage_id: str, score: str, line: int) -> Qrel:
        """Add a row.

        Raises:
            BadRow: if the query is unknown, or the score is none or contradicts an earlier one.
        """
        relevance = grade(score)
        if query_id not in self._queries:
            remedy = "add it to the queries or delete the row"
            if query_id.strip() in self._queries:
                remedy = "remove the white space around it"
            raise BadRow("unknown query", remedy, repr(query_id))
        row = Qrel(query_id, passage_id, relevance, line)
        before = self._rows.get((query_id, passage_id), row)
        self._rows[query_id, passage_id] = row
        if before.relevance != relevance and self._strict:
            case = f"{before.relevance} on line {before.line}, {relevance} on line {line}"
            remedy = "keep one of the rows (for beir, and if rows are skipped, the last one counts)"
            raise BadRow("two scores for one query and passage", remedy, case)
        if before.line != line:
            self._reader.count(f"dropped/{self._file}/repeated judgement")
        return row

    def rows(self) -> list[Qrel]:
        """Return one row for each query and passage."""
        return list(self._rows.values())


def grade(score: str) -> int:
    """Return the grade of a judgement, an integer that may be written as 1.0.

    >>> grade("2"), grade("1.0"), grade("-1")
    (2, 1, -1)
    """
    if not re.fullmatch(r"[+-]?[0-9]+(\.0*)?", score.strip()):
        raise BadRow("the score is not an integer", "write 0, 1, 2, ...", repr(score))
    if abs(float(score)) > MOST_RELEVANT:
        remedy = f"write grades from 0 to {MOST_RELEVANT}; their ratios are what counts"
        raise BadRow("the score is too great", remedy, score.strip()[:20])
    return int(float(score))


def known_qrels(
    reader: Reader, file: RawFile, qrels: Iterable[Qrel], passage_ids: Container[str]
) -> list[Qrel]:
    """Return the qrels whose passages are in the corpus; the others are bad rows."""
    known = []
    for qrel in qrels:
        if qrel.passage_id in passage_ids:
            known.append(qrel)
        else:
            reader.bad(
                file,
                qrel.line,
                BadRow(
                    "unknown passage",
                    "add it to the corpus or delete the row (beir takes it for one not found)",
                    repr(qrel.passage_id),
                ),
            )
    reader.require(file, len(known))
    return known


def check_judged(
    file: RawFile,
    qrels: list[Qrel],
    queries_file: RawFile,
    queries: dict[str, Query],
    cluster_by: str = "",
) -> None:
    """Check that a passage is relevant at all, and that every judged query has its cluster.

    Raises:
        DataError: naming the file, or the query that lacks a cluster.
    """
    if not any(row.relevance > 0 for row in qrels):
        raise DataError(f"{file}: no passage is relevant; a score above 0 means relevant")
    for query in (queries[row.query_id] for row in qrels):
        if query.cluster is None:
            raise DataError(
                f"{queries_file}:{query.line}: query {query.query_id!r} has no "
                f'"{cluster_by}" in its metadata; add it, or change data.cluster_by'
            )


def write_corpus(folder: Path, passages: Iterable[Passage]) -> int:
    """Write corpus.parquet into a folder; return the number of passages."""
    folder.mkdir(exist_ok=True)
    return write_parquet(folder / "corpus.parquet", PASSAGES, passages)


def judged(
    queries: dict[str, Query], qrels: list[Qrel]
) -> tuple[list[tuple[str, str, str | None]], list[tuple[str, str, int]]]:
    """Return the rows of queries.parquet and qrels.parquet: what was judged, sorted by id."""
    ids = sorted({row.query_id for row in qrels})
    asked = [queries[query_id] for query_id in ids]
    return (
        [(query.query_id, query.text, query.cluster) for query in asked],
        sorted((row.query_id, row.passage_id, row.relevance) for row in qrels),
    )


def write_evaluation(
    folder: Path,
    queries: Iterable[tuple[str, str, str | None]],
    qrels: Iterable[tuple[str, str, int]],
    prefix: str = "",
) -> dict[str, int]:
    """Write PREFIXqueries.parquet and PREFIXqrels.parquet; return how many rows each has."""
    return {
        "queries": write_parquet(folder / f"{prefix}queries.parquet", QUERIES, queries),
        "judgements": write_parquet(folder / f"{prefix}qrels.parquet", QRELS, qrels),
    }
