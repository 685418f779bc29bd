"""BEIR's layout: corpus.jsonl, queries.jsonl, qrels/{train,dev,test}.tsv.

Qrels are read as beir reads them, by the rules of csv; TREC's four columns are understood too. For beir
the last of two judgements of one pair counts, and a judged passage that the corpus lacks counts as not
retrieved. In a user's own files both are errors; published datasets are read by beir's rules.
"""

import csv
import re
from collections.abc import Iterator

from expandr_core.data.collection import Collection, Qrel, QrelTable, Query, passage_of, query_of
from expandr_core.data.fields import BadRow, parse_object
from expandr_core.data.rows import RawFile, Reader, find_files
from expandr_core.errors import DataError
from expandr_core.records import Passage
from expandr_core.store.filesystems import kind_of, open_filesystem

CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"
SPLITS = ("train", "dev", "test")
_ITERATION = re.compile(r"[qQ]?0|[0-9]+\.[0-9]+")  # TREC's second column


def qrels_name(split: str) -> str:
    """Return the name of a split's qrels.

    >>> qrels_name("test")
    'qrels/test.tsv'
    """
    return f"qrels/{split}.tsv"


def claims(location: str) -> bool:
    """Claim whatever no other format does, so that messages name this layout's files."""
    return True


def find(location: str, split: str, role: str = "collection") -> list[RawFile]:
    """Find the three files of a dataset.

    Raises:
        DataError: if one is missing.
    """
    filesystem, path = open_filesystem(location)
    if kind_of(filesystem, path) != "directory":
        raise DataError(f"{location}: no such folder; correct the dataset's location")
    names = [CORPUS, QUERIES, qrels_name(split)]
    files = find_files(location, names, role)
    for name in names:
        if name not in files:
            raise DataError(
                f"{location}/{name} is missing; a dataset for measuring needs {', '.join(names)}"
            )
    return [files[name] for name in names]


def read(
    reader: Reader, files: list[RawFile], split: str, strict: bool, cluster_by: str
) -> Collection:
    """Read a dataset; the corpus is read when its passages are asked for."""
    corpus, queries_file, qrels_file = files
    queries = read_queries(reader, queries_file, cluster_by)
    qrels = read_qrels(reader, qrels_file, queries, strict)
    lines: dict[str, int] = {}
    passages = read_corpus(reader, corpus, lines)
    return Collection(queries, qrels, passages, lines, queries_file, qrels_file)


def collection_files(location: str, *, train: bool) -> dict[str, RawFile]:
    """Find a collection's files, by name; its training qrels only if they are needed.

    Raises:
        DataError: if the corpus, the queries, or all qrels are missing.
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


def read_corpus(reader: Reader, file: RawFile, lines: dict[str, int]) -> Iterator[Passage]:
    """Yield the passages in the order of the file; their lines by id are added to `lines`."""
    return reader.rows(file, lambda line, text: passage_of(parse_object(text), line, lines))


def read_queries(reader: Reader, file: RawFile, cluster_by: str = "") -> dict[str, Query]:
    """Read all queries, by id."""
    lines: dict[str, int] = {}
    rows = reader.rows(
        file, lambda line, text: query_of(parse_object(text), line, lines, cluster_by)
    )
    return {query.query_id: query for query in rows}


def read_qrels(
    reader: Reader, file: RawFile, queries: dict[str, Query], strict: bool = True
) -> list[Qrel]:
    """Read the qrels of one split, whose queries must be known; see `QrelTable`."""
    table = QrelTable(reader, file.name, queries, strict)

    def parse(line: int, content: str) -> Qrel | None:
        query_id, passage_id, score = _columns(content)
        if line == 1 and query_id not in queries and not re.search("[0-9]", score):
            return None  # a header
        return table.add(query_id, passage_id, score, line)

    for _ in reader.rows(file, parse):
        pass
    return table.rows()


def _columns(content: str) -> list[str]:
    """Return query id, passage id and score of a line; ids in quotes are read as csv writes them.

    >>> _columns('1\\t"an ""id"" so"\\t2'), _columns("1 Q0 d7 2")
    (['1', 'an "id" so', '2'], ['1', 'd7', '2'])
    """
    line = content.rstrip("\r\n")
    try:
        columns = next(csv.reader([line], delimiter="\t")) if "\t" in line else line.split()
    except csv.Error as error:
        raise BadRow(
            "not readable as csv", "end lines with \\n, and write short ids", str(error)
        ) from None
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
