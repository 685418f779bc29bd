"""Import queries without judgements: a text file with one query a line, or JSON lines with a field text.

Writes queries.parquet, in the order of the file; with the input `world`, that of a demo world's log. A
query's id depends on its text alone, so that a file may be sorted or grow without new expansions for the
queries that it had. Repeated queries are dropped.
"""

from collections.abc import Iterator
from typing import Literal, Self

from expandr_core.data.fields import filled_field, parse_object
from expandr_core.data.formats.triples import text_id
from expandr_core.data.rows import GZIP, RawFile, Reader, write_parquet
from expandr_core.errors import DataError
from expandr_core.options.base import Options, runtime
from expandr_core.options.distil import DEMO
from expandr_core.options.loop import JointLoopOptions
from expandr_core.records import QUERIES
from expandr_core.runtime.job import Job
from expandr_core.stages.demo_world import LOG
from expandr_core.store.filesystems import kind_of, open_filesystem

VERSION = 1
ROLE = "data"
ISOLATION = "never"
FILE = "queries.parquet"
FILES = (FILE,)


class ImportQueriesOptions(Options):
    """Where the queries are, and what becomes of a bad row."""

    location: str = runtime("")
    bad_rows: Literal["refuse", "skip"] = "refuse"

    @classmethod
    def of(cls, options: JointLoopOptions) -> Self:
        """Import the queries that the student learns from too."""
        return cls(location=options.distil.queries, bad_rows=options.data.bad_rows)


OPTIONS = ImportQueriesOptions


def source_digests(options: ImportQueriesOptions) -> dict[str, str]:
    """Return the SHA-256 of the file, by its name; the demo's log is in the store."""
    file = find_file(options.location) if options.location != DEMO else None
    return {file.name: file.sha256()} if file else {}


def find_file(location: str) -> RawFile:
    """Find the file; its ending tells the layout.

    Raises:
        DataError: if there is none.
    """
    filesystem, path = open_filesystem(location)
    if kind_of(filesystem, path) != "file":
        raise DataError(
            f"{location}: no such file; name one with a query a line, or *.jsonl, in distil.queries"
        )
    layout = "jsonl" if path.removesuffix(GZIP).endswith(".jsonl") else "txt"
    return RawFile(filesystem, path, f"queries.{layout}")


def run(job: Job) -> None:
    """Write the queries, each its own cluster."""
    options: ImportQueriesOptions = job.options
    reader = Reader(options.bad_rows, job.counts, job.spec.sources)
    world = job.inputs.get("world")
    file = find_file(str(world / LOG) if world else options.location)

    def parse(_: int, line: str) -> str:
        text = filled_field(parse_object(line), "text") if file.name.endswith("jsonl") else line
        return text.strip()

    def rows() -> Iterator[tuple[str, str, str]]:
        seen: set[str] = set()
        for text in reader.rows(file, parse):
            name = text_id(text)
            if name in seen:
                reader.count("dropped/repeated queries")
                continue
            seen.add(name)
            yield name, text, name
            job.progress(len(seen), len(seen), "queries")

    job.counts["queries"] = write_parquet(job.out / FILE, QUERIES, rows())
