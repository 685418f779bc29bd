"""A collection in BEIR layout: corpus.jsonl, queries.jsonl, qrels/{train,dev,test}.tsv.

Judgements are read as beir reads them, by the rules of csv; TREC's four columns are understood too. beir
lets the last of two judgements of one pair count, and a judged passage that the corpus lacks is one that
was not found. In one's own files both are faults, but BEIR's datasets have them: with beir_rules they
are taken as beir takes them.
"""

import csv
import re
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from expandr_core.data.rows import (
    BadRow,
    RawFile,
    Reader,
    filled_field,
    find_files,
    parse_object,
    text_field,
)
from expandr_core.errors import DataError
from expandr_core.records import Passage

CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"
SPLITS = ("train", "dev", "test")
MOST_RELEVANT = 1000  # trec_eval keeps a table of all grades up to the greatest for each query
_ITERATION = re.compile(r"[qQ]?0|[0-9]+\.[0-9]+")  # TREC's second column


class Query(NamedTuple):
    """A row of the queries; `cluster` is None if its metadata does not name one."""

    query_id: str
    text: str
    cluster: str | None
    line: int


class Judgement(NamedTuple):
    """A row of the qrels."""

    query_id: str
    passage_id: str
    relevance: int
    line: int


def qrels_name(split: str) -> str:
    """Return the name of a split's judgements.

    >>> qrels_name("test")
    'qrels/test.tsv'
    """
    return f"qrels/{split}.tsv"


def collection_files(location: str, *, train: bool) -> dict[str, RawFile]:
    """Find a collection's files, by name; its training judgements only if they are needed.

    Raises:
        DataError: if the corpus, the queries, or all judgements are missing.
    """
    names = [CORPUS, QUERIES, *map(qrels_name, SPLITS)]
    files = find_files(location, names, "collection")
    for name in (CORPUS, QUERIES):
        if name not in files:
            raise DataError(
                f"{location}/{name} is missing; a collection needs {CORPUS}, {QUERIES} and qrels/"
            )
    if len(files) == 2:
        raise DataError(
            f"{location}/qrels: no judgements; add train.tsv, dev.tsv or test.tsv with the columns "
            "query-id, corpus-id and score"
        )
    if not train:
        files.pop(qrels_name("train"), None)
    elif qrels_name("train") not in files:
        raise DataError(
            f"{location}/{qrels_name('train')} is missing, so there are no training queries; "
            "add it, or name training triples in data.triples"
        )
    return files


def _new_id(record: dict, line: int, lines: dict[str, int]) -> str:
    """Return a row's id and note its line; an id that was there before is a bad row."""
    if record.get("_id") == "":
        raise BadRow("_id is empty", "give every row an id of its own")
    identifier = text_field(record, "_id")
    first = lines.setdefault(identifier, line)
    if first != line:
        case = f"{identifier!r}, first on line {first}, again on line {line}"
        raise BadRow("duplicate _id", "give every row an id of its own", case)
    return identifier


def read_corpus(reader: Reader, file: RawFile, lines: dict[str, int]) -> Iterator[Passage]:
    """Yield the passages in the order of the file; their lines by id are added to `lines`."""

    def parse(line: int, content: str) -> Passage:
        record = parse_object(content)
        title, text = text_field(record, "title", ""), text_field(record, "text")
        return Passage(_new_id(record, line, lines), title, text)

    return reader.rows(file, parse)


def read_queries(reader: Reader, file: RawFile, cluster_by: str = "") -> dict[str, Query]:
    """Read all queries, by id."""
    lines: dict[str, int] = {}

    def parse(line: int, content: str) -> Query:
        record = parse_object(content)
        text = filled_field(record, "text")
        query_id = _new_id(record, line, lines)
        if not cluster_by:
            return Query(query_id, text, query_id, line)
        metadata = record.get("metadata")
        value = metadata.get(cluster_by) if isinstance(metadata, dict) else None
        cluster = str(value) if isinstance(value, str | int) and value != "" else None
        return Query(query_id, text, cluster, line)

    return {query.query_id: query for query in reader.rows(file, parse)}


def read_qrels(
    reader: Reader, file: RawFile, queries: dict[str, Query], beir_rules: bool = False
) -> list[Judgement]:
    """Read the judgements of one split, whose queries must be known.

    Of several judgements of one pair the last one counts; if they differ, it is a bad row unless
    `beir_rules`.
    """
    judged: dict[tuple[str, str], Judgement] = {}

    def parse(line: int, content: str) -> Judgement | None:
        query_id, passage_id, score = _columns(content)
        if line == 1 and query_id not in queries and not re.search("[0-9]", score):
            return None  # a header
        relevance = grade(score)
        if query_id not in queries:
            remedy = f"add it to {QUERIES} or delete the row"
            if query_id.strip() in queries:
                remedy = "remove the white space around it"
            raise BadRow("unknown query", remedy, repr(query_id))
        judgement = Judgement(query_id, passage_id, relevance, line)
        before = judged.get((query_id, passage_id), judgement)
        judged[query_id, passage_id] = judgement
        if before.relevance != relevance and not beir_rules:
            case = f"{before.relevance} on line {before.line}, {relevance} on line {line}"
            remedy = "keep one of the rows (for beir, and if rows are skipped, the last one counts)"
            raise BadRow("two scores for one query and passage", remedy, case)
        if before.line != line:
            reader.count(f"dropped/{file.name}/repeated judgement")
        return judgement

    for _ in reader.rows(file, parse):
        pass
    return list(judged.values())


def _columns(content: str) -> list[str]:
    """Return query id, passage id and score of a line; ids in quotes are read as csv writes them.

    >>> _columns('1\\t"an ""id"" so"\\t2'), _columns("1 Q0 d7 2")
    (['1', 'an "id" so', '2'], ['1', 'd7', '2'])
    """
    line = content.rstrip("\r\n")
    columns = next(csv.reader([line], delimiter="\t")) if "\t" in line else line.split()
    while columns and not columns[-1].strip():
        columns.pop()
    if len(columns) == 4 and _ITERATION.fullmatch(columns[1].strip()):
        del columns[1]
    if len(columns) != 3:
        raise BadRow(
            "not three columns",
            "separate query-id, corpus-id and score by tabs, or write TREC's four columns",
            f"{len(columns)} found",
        )
    return columns


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


def known_judgements(
    reader: Reader, file: RawFile, judgements: Iterable[Judgement], passage_ids: Container[str]
) -> list[Judgement]:
    """Return the judgements whose passages are in the corpus; the others are bad rows."""
    known = []
    for judgement in judgements:
        if judgement.passage_id in passage_ids:
            known.append(judgement)
        else:
            reader.bad(
                file,
                judgement.line,
                BadRow(
                    "unknown passage",
                    f"add it to {CORPUS} or delete the row (beir takes it for one not found)",
                    repr(judgement.passage_id),
                ),
            )
    reader.require(file, len(known))
    return known


def check_judged(
    file: RawFile,
    judgements: list[Judgement],
    queries_file: RawFile,
    queries: dict[str, Query],
    cluster_by: str = "",
) -> None:
    """Check that a passage is relevant at all, and that every judged query has its cluster.

    Raises:
        DataError: naming the file, or the query that lacks a cluster.
    """
    if not any(row.relevance > 0 for row in judgements):
        raise DataError(f"{file}: no passage is relevant; a score above 0 means relevant")
    for query in (queries[row.query_id] for row in judgements):
        if query.cluster is None:
            raise DataError(
                f"{queries_file}:{query.line}: query {query.query_id!r} has no "
                f'"{cluster_by}" in its metadata; add it, or change data.cluster_by'
            )
