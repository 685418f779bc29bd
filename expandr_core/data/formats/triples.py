"""Training triples: JSON lines with a query, positives and, if there are any, negatives.

The rows have no ids, so they get them: a passage's is a hash of its text, a query's its source (the
file) and a hash of its normalised text. The triples go through a temporary SQLite file, which sorts
them, finds repetitions and joins the negatives of each query and positive, in little memory.
"""

import hashlib
import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from expandr_core.data.fields import parse_object, text_field
from expandr_core.data.rows import GZIP, RawFile, Reader, hub_copy
from expandr_core.data.split import SplitName, normalise
from expandr_core.data.triple_rows import Triple, triples_of
from expandr_core.errors import DataError
from expandr_core.records import Example
from expandr_core.store.filesystems import kind_of, open_filesystem

_ENDING = ".jsonl"
EXPANSION = "pseudo_doc"  # field of the paper's release


class TripleRow(NamedTuple):
    """The triples of a row, and the expansion of their query that it brings; "" if it brings none."""

    triples: list[Triple]
    expansion: str


def triples_files(location: str) -> list[RawFile]:
    """Find the triples: all `*.jsonl` of a folder, sorted by name, or the one file named.

    They may be packed, as `*.jsonl.gz`; a file that is there both ways is read once.

    Raises:
        DataError: if there are none.
    """
    filesystem, path = open_filesystem(hub_copy(location, [f"*{_ENDING}*"]))
    if path.endswith((_ENDING, _ENDING + GZIP)):
        paths = [path] if kind_of(filesystem, path) == "file" else []
    else:
        if kind_of(filesystem, path) != "directory":
            raise DataError(f"{location}: no such folder; correct data.triples")
        paths = [found.rstrip("/") for found in filesystem.ls(path, detail=False)]
    packed_first = sorted(paths, key=lambda found: not found.endswith(GZIP))
    names = {found.rsplit("/", 1)[-1].removesuffix(GZIP): found for found in packed_first}
    files = [
        RawFile(filesystem, names[name], f"triples/{name}")
        for name in sorted(names)
        if name.endswith(_ENDING) and not name.startswith(".")
    ]
    if not files:
        raise DataError(f"{location}: no triples; put *.jsonl files there, or correct data.triples")
    return files


def read_triples(reader: Reader, file: RawFile) -> Iterator[TripleRow]:
    """Yield the rows of a file, without white space around the texts."""

    def parse(line: int, content: str) -> TripleRow:
        record = parse_object(content)
        triples, instruction = triples_of(record)
        if instruction:
            reader.count(f"dropped/{file.name}/instruction")
        return TripleRow(triples, text_field(record, EXPANSION, "").strip())

    return reader.rows(file, parse)


def text_id(text: str) -> str:
    """Return an id that depends on the text alone: 20 hex digits of its SHA-256.

    >>> text_id("wing")
    'c047caef95b4d3e8d7f7'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def query_id_of(triple: Triple, source: str) -> str:
    """Return the id of a triple's query: all its spellings in a source share it."""
    return f"{source}-{text_id(normalise(triple.query))}"


class TripleTable:
    """The triples on disk, sorted by query and positive, each once."""

    def __init__(self, path: Path):
        """Start a new table in a file, which may be deleted after use."""
        path.unlink(missing_ok=True)
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.executescript(
            """
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            PRAGMA temp_store = FILE;
            PRAGMA cache_size = -100000;  -- KiB
            CREATE TABLE passage (id TEXT UNIQUE, text TEXT);
            CREATE TABLE query (id TEXT UNIQUE, text TEXT, source TEXT, split TEXT);
            CREATE TABLE triple (query TEXT, positive TEXT, negative TEXT,
                PRIMARY KEY (query, positive, negative)) WITHOUT ROWID;
            CREATE TABLE expansion (query TEXT, id TEXT, text TEXT, UNIQUE (query, id));
            BEGIN;
            """
        )

    def add(self, triple: Triple, source: str, split: SplitName) -> bool:
        """Add a triple; return False if it is there already.

        Of several spellings of one query the first in alphabetical order is kept.
        """
        passages = [triple.positive, triple.negative] if triple.negative else [triple.positive]
        ids = [text_id(text) for text in passages]
        query_id = query_id_of(triple, source)
        new = self.database.execute(
            "INSERT OR IGNORE INTO triple VALUES (?, ?, ?)",
            (query_id, ids[0], ids[1] if triple.negative else ""),
        ).rowcount
        if new:
            self.database.executemany(
                "INSERT OR IGNORE INTO passage VALUES (?, ?)", zip(ids, passages, strict=True)
            )
        self.database.execute(
            "INSERT INTO query VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET text = min(text, excluded.text)",
            (query_id, triple.query, source, split),
        )
        return bool(new)

    def add_expansion(self, triple: Triple, source: str, text: str) -> bool:
        """Add an expansion of a triple's query; return False if it is there already."""
        row = (query_id_of(triple, source), text_id(text), text)
        return bool(
            self.database.execute("INSERT OR IGNORE INTO expansion VALUES (?, ?, ?)", row).rowcount
        )

    def expansions(self, split: SplitName) -> Iterator[tuple[str, int, str]]:
        """Yield query id, number and text of the expansions of a split's queries, sorted by query id.

        A query's expansions are numbered from 0 as they came; one without any has an empty one.
        """
        rows = self.database.execute(
            """
            SELECT query.id, coalesce(expansion.text, '') FROM query
            LEFT JOIN expansion ON expansion.query = query.id
            WHERE query.split = ? ORDER BY query.id, expansion.rowid
            """,
            (split,),
        )
        for query_id, group in itertools.groupby(rows, key=lambda row: row[0]):
            yield from ((query_id, number, text) for number, (_, text) in enumerate(group))

    def drop_false_negatives(self) -> int:
        """Blank the negatives that are a positive of the same query; return how many there were."""
        condition = (
            "negative != '' AND EXISTS (SELECT 1 FROM triple AS other"
            " WHERE other.query = triple.query AND other.positive = triple.negative)"
        )
        self.database.execute(
            "CREATE TEMP TABLE false_negative AS SELECT query, positive, negative"
            f" FROM triple WHERE {condition}"
        )
        self.database.execute(
            "INSERT OR IGNORE INTO triple SELECT query, positive, '' FROM false_negative"
        )
        return self.database.execute(
            "DELETE FROM triple WHERE (query, positive, negative) IN false_negative"
        ).rowcount

    def examples(self, split: SplitName) -> Iterator[Example]:
        """Yield a split's examples, sorted by query id and positive id."""
        rows = self.database.execute(
            """
            SELECT triple.query, query.text, query.source,
                triple.positive, positive.text, triple.negative, negative.text
            FROM triple
            CROSS JOIN query ON query.id = triple.query
            CROSS JOIN passage AS positive ON positive.id = triple.positive
            LEFT JOIN passage AS negative ON negative.id = triple.negative
            WHERE query.split = ? ORDER BY triple.query, triple.positive, triple.negative
            """,
            (split,),
        )
        for example, group in itertools.groupby(rows, key=lambda row: row[:5]):
            query_id, query, source, positive_id, positive = example
            negatives = {row[5]: row[6] for row in group if row[5]}
            yield Example(
                query_id,
                query,
                source,
                positive_id,
                positive,
                list(negatives),
                list(negatives.values()),
            )

    def passages(self, split: SplitName) -> Iterator[tuple[str, str]]:
        """Yield id and text of a split's positives and negatives, each once, sorted by id."""
        yield from self.database.execute(
            """
            SELECT id, text FROM passage WHERE id IN (
                SELECT positive FROM triple JOIN query ON query.id = triple.query WHERE split = ?1
                UNION
                SELECT negative FROM triple JOIN query ON query.id = triple.query WHERE split = ?1)
            ORDER BY id
            """,
            (split,),
        )

    def close(self) -> None:
        """Close the file."""
        self.database.close()
