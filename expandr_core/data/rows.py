"""Raw files, local, on S3 or on the hub: find them, and read them row by row."""

import codecs
import contextlib
import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from expandr_core.data.fields import BadRow
from expandr_core.errors import DataError
from expandr_core.store.filesystems import kind_of, open_filesystem

Row = TypeVar("Row")
Content = TypeVar("Content")
GZIP = ".gz"
HUB = "hub:"
_GZIP_MAGIC = b"\x1f\x8b"
_BLOCK = 1 << 20
_ROWS = 8192


class RawFile(NamedTuple):
    """A file outside the store; `name` identifies it independently of its folder.

    Gzip files are read unpacked, and named without their suffix.
    """

    filesystem: AbstractFileSystem
    path: str
    name: str

    def __str__(self) -> str:
        return self.path if self._is_local() else self.filesystem.unstrip_protocol(self.path)

    def _is_local(self) -> bool:
        return "file" in self.filesystem.protocol

    @property
    def source(self) -> str:
        """The file's name without folder and ending.

        >>> RawFile(AbstractFileSystem(), "/data/triples/fever.jsonl", "triples/fever.jsonl").source
        'fever'
        """
        return Path(self.path.removesuffix(GZIP)).stem

    @contextlib.contextmanager
    def open(self) -> Iterator[io.BufferedIOBase]:
        """Open for reading bytes, in blocks."""
        try:
            raw = self.filesystem.open(self.path, "rb", block_size=8 * _BLOCK)
        except FileNotFoundError as error:
            raise DataError(f"{self} is missing; put it there, or correct the location") from error
        with io.BufferedReader(cast(io.RawIOBase, raw), _BLOCK) as file:
            if not file.peek(2).startswith(_GZIP_MAGIC):
                yield file
                return
            try:
                yield gzip.GzipFile(fileobj=file)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DataError(
                    f"{self}: damaged gzip file ({error}); get the file again"
                ) from error

    def sha256(self) -> str:
        """SHA-256 of the content, in hex."""
        digest = hashlib.sha256()
        with self.open() as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()


def hub_copy(location: str, patterns: list[str]) -> str:
    """Return where files lie; those on the hub are downloaded into its cache.

    Args:
        location: a folder or URL, which is returned as it is, or "hub:" and a dataset on the hub.
        patterns: of the files that are needed.

    Raises:
        DataError: if the hub has no such dataset.
    """
    if not location.startswith(HUB):
        return location
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    name = location.removeprefix(HUB)
    try:
        return snapshot_download(name, repo_type="dataset", allow_patterns=patterns)
    except RepositoryNotFoundError as error:
        raise DataError(f"{location}: no such dataset on the hub; correct its name") from error


def find_files(location: str, names: list[str], role: str) -> dict[str, RawFile]:
    """Return the named files that exist in a folder or under an `s3://` URL, plain or as NAME.gz.

    Raises:
        DataError: if there is no such folder.
    """
    filesystem, folder = open_filesystem(location)
    if kind_of(filesystem, folder) != "directory":
        raise DataError(f"{location}: no such folder; correct data.{role}")
    found = {}
    for name in names:
        for path in (f"{folder}/{name}", f"{folder}/{name}{GZIP}"):
            if name not in found and kind_of(filesystem, path) == "file":
                found[name] = RawFile(filesystem, path, f"{role}/{name}")
    return found


class Reader:
    """Reads raw files row by row; refuses bad rows, or counts them by reason.

    Args:
        bad_rows: "refuse" or "skip".
        counts: receives `skipped/<file>/<reason>`.
        digests: expected SHA-256 by file name.
        progress: called with the bytes read so far.
    """

    def __init__(
        self,
        bad_rows: Literal["refuse", "skip"] = "refuse",
        counts: dict[str, float] | None = None,
        digests: dict[str, str] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ):
        self.bad_rows = bad_rows
        self.counts = {} if counts is None else counts
        self.digests = digests or {}
        self.progress = progress
        self._done = 0
        self._first_bad: dict[str, str] = {}

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        self.counts[name] = self.counts.get(name, 0) + number

    def bad(self, file: RawFile, line: int, row: BadRow) -> None:
        """Refuse a bad row, or count it."""
        if self.bad_rows == "refuse":
            trained_on = file.name.startswith(("triples/", "pairs/"))
            what = "" if trained_on else ", which changes the metrics"
            raise DataError(
                f"{file}:{line}: {row}, or set data.bad_rows to 'skip' to go on without such "
                f"rows{what}"
            ) from None
        self._first_bad.setdefault(file.name, f"line {line}: {row}")
        self.count(f"skipped/{file.name}/{row.reason}")

    def rows(self, file: RawFile, parse: Callable[[int, str], Row | None]) -> Iterator[Row]:
        """Yield `parse(line number, line)` of each line that is not blank.

        Parsers raise `BadRow`, or return None for lines such as a header.

        Raises:
            DataError: for a bad row (if refused), or if no row remains.
        """
        yield from self.each(file, self._lines(file), lambda line, raw: parse(line, _decode(raw)))

    def _lines(self, file: RawFile) -> Iterator[tuple[int, bytes]]:
        """Yield number and content of each line that is not blank."""
        digest = hashlib.sha256()
        with file.open() as lines:
            for number, raw in enumerate(lines, 1):
                digest.update(raw)
                self._done += len(raw)
                if number % 4096 == 0:
                    self.progress(self._done)
                if number == 1:
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                if raw.strip():
                    yield number, raw
        self.progress(self._done)
        self._compare(file, digest.hexdigest())

    def each(
        self,
        file: RawFile,
        numbered: Iterable[tuple[int, Content]],
        parse: Callable[[int, Content], Row | None],
    ) -> Iterator[Row]:
        """Yield `parse(number, content)` of each row of a file; see `rows`."""
        kept = 0
        for number, content in numbered:
            try:
                row = parse(number, content)
            except BadRow as bad:
                self.bad(file, number, bad)
                continue
            if row is not None:
                kept += 1
                yield row
        self.require(file, kept)

    def verify(self, file: RawFile) -> None:
        """Refuse a file that has changed since it was hashed."""
        if file.name in self.digests:
            self._compare(file, file.sha256())

    def _compare(self, file: RawFile, digest: str) -> None:
        if self.digests.get(file.name, digest) != digest:
            raise DataError(f"{file} was changed during the run; start the run again")

    def require(self, file: RawFile, kept: int) -> None:
        """Refuse a file without usable rows."""
        if kept:
            return
        prefix = f"skipped/{file.name}/"
        skipped = {
            name.removeprefix(prefix): int(number)
            for name, number in self.counts.items()
            if name.startswith(prefix)
        }
        if skipped:
            reasons = ", ".join(f"{reason}: {number}" for reason, number in skipped.items())
            raise DataError(
                f"{file}: all rows were skipped ({reasons}); correct the file, first "
                f"{self._first_bad[file.name]}"
            )
        raise DataError(f"{file} is empty; it must hold at least one row")


def _decode(raw: bytes) -> str:
    if b"\0" in raw or raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadRow(
            "not UTF-8",
            "convert the file, with iconv -f UTF-16 -t UTF-8 if it is UTF-16",
            "UTF-16?",
        )
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BadRow(
            "not UTF-8",
            "convert the file, for example with iconv -f LATIN1 -t UTF-8",
            f"byte {error.start + 1} of the line is 0x{raw[error.start]:02x}",
        ) from None


def write_parquet(path: Path, schema: pa.Schema, rows: Iterable[tuple]) -> int:
    """Write rows in blocks, so that memory stays flat; return their number."""
    written = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        block: list[tuple] = []

        def flush() -> None:
            columns = zip(*block, strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            block.clear()

        for row in rows:
            block.append(row)
            written += 1
            if len(block) == _ROWS:
                flush()
        if block:
            flush()
    return written
