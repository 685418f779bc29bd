"""NanoBEIR's layout: Parquet files on the hub, or in a folder.

corpus/SPLIT-*.parquet    _id, text, and optionally title
queries/SPLIT-*.parquet   _id, text
qrels/SPLIT-*.parquet     query-id, corpus-id (one or a list), and optionally score; relevant without one
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.data.collection import Collection, QrelTable, passage_of, query_of
from expandr_core.data.fields import text_field
from expandr_core.data.rows import RawFile, Reader, hub_copy
from expandr_core.errors import DataError
from expandr_core.store.filesystems import kind_of, open_filesystem

FOLDERS = ("corpus", "queries", "qrels")


def local_copy(location: str, split: str) -> str:
    """Return where the files of a split lie; those on the hub are downloaded into its cache.

    Raises:
        DataError: if the hub has no such dataset.
    """
    return hub_copy(location, [f"{folder}/{split}-*.parquet" for folder in FOLDERS])


def claims(location: str) -> bool:
    """Tell whether there are folders with a corpus or queries; BEIR has files."""
    filesystem, path = open_filesystem(location)
    return any(kind_of(filesystem, f"{path}/{name}") == "directory" for name in FOLDERS[:2])


def find(location: str, split: str, role: str = "collection") -> list[RawFile]:
    """Find the files of a split.

    Raises:
        DataError: if a folder has none.
    """
    filesystem, path = open_filesystem(location)
    found = []
    for folder in FOLDERS:
        paths: Any = []
        if kind_of(filesystem, f"{path}/{folder}") == "directory":
            paths = filesystem.ls(f"{path}/{folder}", detail=False)
        names = [(each, f"{folder}/{each.rsplit('/', 1)[-1]}") for each in sorted(paths)]
        names = [pair for pair in names if fnmatchcase(pair[1], f"{folder}/{split}-*.parquet")]
        if not names:
            raise DataError(
                f"{location}/{folder}/{split}-*.parquet: no such file; a NanoBEIR dataset has the "
                f"folders {', '.join(FOLDERS)} with a file for each split"
            )
        found += [RawFile(filesystem, each, name) for each, name in names]
    return found


def read(
    reader: Reader, files: list[RawFile], split: str, strict: bool, cluster_by: str
) -> Collection:
    """Read a dataset; the corpus is read when its passages are asked for."""
    corpus, asked, judged = (
        [file for file in files if file.name.startswith(f"{folder}/")] for folder in FOLDERS
    )
    lines: dict[str, int] = {}
    query_lines: dict[str, int] = {}
    queries = {
        query.query_id: query
        for file in asked
        for query in reader.each(
            file,
            _records(reader, file),
            lambda line, row: query_of(row, line, query_lines, cluster_by),
        )
    }
    table = QrelTable(reader, judged[0].name, queries, strict)
    for file in judged:
        rows = _judgements(reader, file)
        for _ in reader.each(file, rows, lambda line, row: table.add(*row, line)):
            pass
    passages = (
        passage
        for file in corpus
        for passage in reader.each(
            file, _records(reader, file), lambda line, row: passage_of(row, line, lines)
        )
    )
    return Collection(queries, table.rows(), passages, lines, asked[0], judged[0])


def _judgements(reader: Reader, file: RawFile) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """Yield query id, passage id and score, for each passage of a list."""
    for line, row in _records(reader, file, "query-id", "corpus-id"):
        passages = row["corpus-id"] if isinstance(row["corpus-id"], list) else [row["corpus-id"]]
        score = "1" if row.get("score") is None else str(row["score"])
        for passage in passages:
            ids = {"query-id": row["query-id"], "corpus-id": passage}
            yield line, (text_field(ids, "query-id"), text_field(ids, "corpus-id"), score)


def _records(reader: Reader, file: RawFile, *columns: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and content of each row."""
    reader.verify(file)
    with file.open() as opened:
        try:
            table = pq.read_table(pa.PythonFile(opened, mode="r"))
        except pa.ArrowInvalid as error:
            raise DataError(f"{file}: no parquet file ({error}); get it again") from error
    for name in columns or ("_id", "text"):
        if name not in table.column_names:
            raise DataError(f"{file}: the column {name!r} is missing; get the file again")
    yield from enumerate(table.to_pylist(), 1)
