"""NanoBEIR: parquet files on the hub, or in a folder of the same layout.

corpus/SPLIT-*.parquet    _id, text, and perhaps title
queries/SPLIT-*.parquet   _id, text
qrels/SPLIT-*.parquet     query-id, corpus-id (one or a list), and perhaps score; else relevant
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.data.beir_layout import Judgement, Query, grade
from expandr_core.data.rows import BadRow, RawFile
from expandr_core.errors import DataError
from expandr_core.records import Passage
from expandr_core.store.filesystems import kind_of, open_filesystem

PARTS = ("corpus", "queries", "qrels")
HUB = "hub:"


def local_copy(location: str, split: str) -> str:
    """Return where the files lie; those on the hub are downloaded into its cache.

    Args:
        location: a folder or URL, which is returned as it is, or "hub:" and a dataset on the hub.
        split: the split whose files are needed.

    Raises:
        DataError: if the hub has no such dataset.
    """
    if not location.startswith(HUB):
        return location
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    name = location.removeprefix(HUB)
    patterns = [f"{part}/{split}-*.parquet" for part in PARTS]
    try:
        return snapshot_download(name, repo_type="dataset", allow_patterns=patterns)
    except RepositoryNotFoundError as error:
        raise DataError(f"{location}: no such dataset on the hub; correct its name") from error


def nano_files(location: str, split: str) -> dict[str, list[RawFile]]:
    """Find the files of a split, by part.

    Raises:
        DataError: if a part is missing.
    """
    filesystem, folder = open_filesystem(location)
    found = {}
    for part in PARTS:
        paths: Any = []
        if kind_of(filesystem, f"{folder}/{part}") == "directory":
            paths = filesystem.ls(f"{folder}/{part}", detail=False)
        names = [(path, f"{part}/{path.rsplit('/', 1)[-1]}") for path in sorted(paths)]
        names = [pair for pair in names if fnmatchcase(pair[1], f"{part}/{split}-*.parquet")]
        if not names:
            raise DataError(
                f"{location}/{part}/{split}-*.parquet: no such file; a NanoBEIR dataset has the folders "
                f"{', '.join(PARTS)} with a file for each split"
            )
        found[part] = [RawFile(filesystem, path, name) for path, name in names]
    return found


def read_passages(files: list[RawFile]) -> Iterator[Passage]:
    """Yield the passages, whose ids must differ."""
    seen: set[str] = set()
    for file, row in _rows(files, ["_id", "text"], "title"):
        identifier, text, title = _texts(file, row, "_id", "text", "title")
        if identifier in seen:
            raise DataError(f"{file}: the id {identifier!r} occurs twice; get the file again")
        seen.add(identifier)
        yield Passage(identifier, title, text)


def read_queries(files: list[RawFile]) -> dict[str, Query]:
    """Read all queries, by id."""
    queries = {}
    for file, row in _rows(files, ["_id", "text"]):
        identifier, text = _texts(file, row, "_id", "text")
        queries[identifier] = Query(identifier, text, identifier, 0)
    return queries


def read_qrels(files: list[RawFile], queries: dict[str, Query]) -> list[Judgement]:
    """Read the judgements, whose queries must be known."""
    judgements = {}
    for file, row in _rows(files, ["query-id", "corpus-id"], "score"):
        [query_id] = _texts(file, row, "query-id")
        if query_id not in queries:
            raise DataError(f"{file}: the query {query_id!r} is not among the queries")
        listed = row["corpus-id"] if isinstance(row["corpus-id"], list) else [row["corpus-id"]]
        try:
            relevance = 1 if row["score"] is None else grade(str(row["score"]))
        except BadRow as bad:
            raise DataError(f"{file}: {bad}") from None
        for passage_id in listed:
            judgements[query_id, passage_id] = Judgement(query_id, passage_id, relevance, 0)
    return list(judgements.values())


def _rows(
    files: list[RawFile], columns: list[str], optional: str = ""
) -> Iterator[tuple[RawFile, dict[str, Any]]]:
    """Yield the rows of all files; an absent optional column is None."""
    for file in files:
        with file.open() as opened:
            try:
                table = pq.read_table(pa.PythonFile(opened, mode="r"))
            except pa.ArrowInvalid as error:
                raise DataError(f"{file}: no parquet file ({error}); get it again") from error
        missing = [name for name in columns if name not in table.column_names]
        if missing:
            raise DataError(f"{file}: the column {missing[0]!r} is missing; get the file again")
        wanted = [*columns, *(name for name in [optional] if name in table.column_names)]
        for row in table.select(wanted).to_pylist():
            yield file, {optional: None, **row}


def _texts(file: RawFile, row: dict[str, Any], *names: str) -> list[str]:
    """Return fields of a row that must be strings; a title may be missing."""
    values = ["" if row[name] is None and name == "title" else row[name] for name in names]
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, str):
            raise DataError(f"{file}: {name} is {value!r}, not a string; get the file again")
    return values
