"""A collection in BEIR layout: corpus.jsonl, queries.jsonl, qrels/{train,dev,test}.tsv."""

import re
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from expandr_core.datasets import (
    BadRow,
    RawFile,
    Reader,
    filled_field,
    find_files,
    parse_object,
    text_field,
)
from expandr_core.errors import DataError

CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"
SPLITS = ("train", "dev", "test")
_HEADERS = {"query-id", "query_id", "queryid", "query", "qid"}


class Passage(NamedTuple):
    """A row of the corpus."""

    passage_id: str
    title: str
    text: str

    @property
    def content(self) -> str:
        """What is encoded, searched and read: title and text.

        >>> Passage("1", "Wings", "They flap.").content, Passage("2", "", "They flap.").content
        ('Wings They flap.', 'They flap.')
        """
        return f"{self.title} {self.text}".strip()


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


def read_qrels(reader: Reader, file: RawFile, queries: dict[str, Query]) -> list[Judgement]:
    """Read the judgements of one split, whose queries must be known."""
    seen: dict[tuple[str, str], Judgement] = {}

    def parse(line: int, content: str) -> Judgement | None:
        columns = content.rstrip("\r\n").split("\t")
        if len(columns) != 3:
            raise BadRow(
                "not three columns",
                "separate query-id, corpus-id and score by tabs",
                f"{len(columns)} found",
            )
        query_id, passage_id, score = columns
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", score.strip()):
            if line == 1 and query_id.lower() in _HEADERS:
                return None
            raise BadRow("the score is not an integer", "write 0, 1, 2, ...", repr(score))
        if query_id not in queries:
            raise BadRow("unknown query", f"add it to {QUERIES} or delete the row", repr(query_id))
        judgement = Judgement(query_id, passage_id, int(score), line)
        first = seen.setdefault((query_id, passage_id), judgement)
        if first.line == line:
            return judgement
        if first.relevance != judgement.relevance:
            case = f"{first.relevance} on line {first.line}, {judgement.relevance} on line {line}"
            raise BadRow("two scores for one query and passage", "keep one of the rows", case)
        reader.count(f"dropped/{file.name}/repeated judgement")
        return None

    return list(reader.rows(file, parse))


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
                    f"add it to {CORPUS} or delete the row",
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
