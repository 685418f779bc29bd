"""Dataset: get a dataset for measuring, as the stage prepare writes a collection's test part.

corpus.parquet, queries.parquet, qrels.parquet    queries are those with judgements, and no others

A dataset with forums (CQADupStack) has these three in a folder for each. It comes from an archive that
is downloaded and compared with its MD5, from a folder or s3:// URL in BEIR layout, or from NanoBEIR's
files.

One of BEIR's datasets follows beir's rules wherever it lies: judgements of passages that the corpus
lacks stay, and are counted (trec_eval takes such a passage for relevant and not found), and of two
judgements of one pair the last one counts. In other folders both are bad rows, as for the stage prepare.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from expandr_core import records
from expandr_core.data import nano_beir
from expandr_core.data.archives import fetch_archive, inside
from expandr_core.data.beir_layout import (
    CORPUS,
    QUERIES,
    Judgement,
    Query,
    check_judged,
    known_judgements,
    qrels_name,
    read_corpus,
    read_qrels,
    read_queries,
)
from expandr_core.data.catalog import Dataset, is_archive
from expandr_core.data.rows import RawFile, Reader, find_files, write_parquet
from expandr_core.errors import DataError
from expandr_core.options.base import Options, runtime
from expandr_core.records import PASSAGES, QRELS, Passage
from expandr_core.runtime.job import Job
from expandr_core.store.filesystems import kind_of, open_filesystem

log = logging.getLogger(__name__)
VERSION = 2
ROLE = "data"
ISOLATION = "never"


class DatasetOptions(Options):
    """Which dataset, and where it is."""

    location: str = runtime("", description="URL of an archive, a folder, or an s3:// URL.")
    layout: Literal["archive", "folder", "nano"] = Field(description="What is there.")
    split: str = Field(description="Whose queries are scored.")
    name: str = Field(
        default="", description="Of a dataset of BEIR's; its folder in an archive. Else empty."
    )
    md5: str = Field(default="", description="Of an archive.")
    forums: tuple[str, ...] = Field(default=(), description="Folders that are datasets.")
    bad_rows: Literal["refuse", "skip"] = Field(
        default="refuse", description="In a folder; those of an archive are skipped."
    )


OPTIONS = DatasetOptions


def options_of(dataset: Dataset, bad_rows: Literal["refuse", "skip"] = "refuse") -> DatasetOptions:
    """Return the options to get a dataset with; files on the hub are downloaded into its cache."""
    location = nano_beir.local_copy(dataset.location, dataset.split)
    layout = "archive" if is_archive(location) else "folder"
    return DatasetOptions(
        location=location,
        layout="nano" if dataset.benchmark == "NanoBEIR" else layout,
        split=dataset.split,
        name=dataset.name if dataset.benchmark == "BEIR" else "",
        md5=dataset.md5,
        forums=dataset.forums,
        bad_rows=bad_rows,
    )


class _Source(NamedTuple):
    """The three files of a dataset in BEIR layout."""

    corpus: RawFile
    queries: RawFile
    qrels: RawFile


def source_digests(options: DatasetOptions) -> dict[str, str]:
    """Return the SHA-256 of every raw file; of an archive none, its MD5 is among the options.

    Raises:
        DataError: if files are missing.
    """
    if options.layout == "archive":
        return {}
    if options.layout == "nano":
        parts = nano_beir.nano_files(options.location, options.split).values()
        return {file.name: file.sha256() for files in parts for file in files}
    sources = _sources(options, None).values()
    return {file.name: file.sha256() for source in sources for file in source}


def _sources(options: DatasetOptions, archive: Path | None) -> dict[str, _Source]:
    """Find the files in BEIR layout, in a folder or an archive, by forum; "" if there are none."""
    found = {}
    for forum in options.forums or [""]:
        folder = f"{options.name if archive else options.location}/{forum}".rstrip("/")
        folder = inside(archive, folder) if archive else folder
        filesystem, path = open_filesystem(folder)
        if kind_of(filesystem, path) != "directory":
            raise DataError(f"{folder}: no such folder; correct the dataset's location")
        names = [CORPUS, QUERIES, qrels_name(options.split)]
        files = find_files(folder, names, forum or "collection")
        for name in names:
            if name not in files:
                raise DataError(
                    f"{folder}/{name} is missing; a dataset for measuring needs {', '.join(names)}"
                )
        found[forum] = _Source(*(files[name] for name in names))
    return found


def run(job: Job) -> None:
    """Read the dataset and write its files."""
    options: DatasetOptions = job.options
    if options.layout == "nano":
        _read_nano(job)
    elif options.layout == "folder":
        _read_folders(job, _sources(options, None))
    else:
        archive = fetch_archive(options.location, options.md5, job.checkpoints)
        _read_folders(job, _sources(options, archive))
        archive.unlink()
    for name, number in sorted(job.counts.items()):
        level = logging.WARNING if {"skipped", "unknown"} & set(name.split("/")) else logging.INFO
        log.log(level, "%s: %d", name, number)


def _read_folders(job: Job, sources: dict[str, _Source]) -> None:
    total = sum(
        file.filesystem.size(file.path) or 0 for source in sources.values() for file in source
    )
    done = 0
    for forum, source in sources.items():
        before = done

        def progress(read: int, before: int = before) -> None:
            job.progress(min(before + read, total) >> 10, total >> 10, "kB")

        _read_folder(job, forum, source, progress)
        done += sum(file.filesystem.size(file.path) or 0 for file in source)


def _read_folder(job: Job, forum: str, source: _Source, progress: Callable[[int], None]) -> None:
    """Read one dataset in BEIR layout."""
    archived = job.options.layout == "archive"
    published = archived or bool(job.options.name)
    bad_rows = "skip" if archived else job.options.bad_rows
    reader = Reader(bad_rows, job.counts, job.spec.sources, progress)
    queries = read_queries(reader, source.queries)
    judgements = read_qrels(reader, source.qrels, queries, beir_rules=published)
    lines: dict[str, int] = {}
    _write_corpus(job, forum, read_corpus(reader, source.corpus, lines))
    if published:
        _count_unknown(job, forum, judgements, lines)
    else:
        judgements = known_judgements(reader, source.qrels, judgements, lines)
    check_judged(source.qrels, judgements, source.queries, queries)
    _write_judged(job, forum, queries, judgements)


def _read_nano(job: Job) -> None:
    files = nano_beir.nano_files(job.options.location, job.options.split)
    for file in (file for part in files.values() for file in part):
        if job.spec.sources.get(file.name) != file.sha256():
            raise DataError(f"{file} was changed during the run; start the run again")
    queries = nano_beir.read_queries(files["queries"])
    judgements = nano_beir.read_qrels(files["qrels"], queries)
    passage_ids: set[str] = set()

    def passages() -> Iterator[Passage]:
        for passage in nano_beir.read_passages(files["corpus"]):
            passage_ids.add(passage.passage_id)
            yield passage

    _write_corpus(job, "", passages())
    _count_unknown(job, "", judgements, passage_ids)
    check_judged(files["qrels"][0], judgements, files["queries"][0], queries)
    _write_judged(job, "", queries, judgements)


def _write_corpus(job: Job, forum: str, passages: Iterable[Passage]) -> None:
    folder = job.out / forum
    folder.mkdir(exist_ok=True)
    written = write_parquet(folder / "corpus.parquet", PASSAGES, passages)
    _count(job, forum, "passages", written)


def _write_judged(
    job: Job, forum: str, queries: dict[str, Query], judgements: list[Judgement]
) -> None:
    """Write the queries that have judgements, and these, both sorted by id."""
    judged = [queries[query_id] for query_id in sorted({row.query_id for row in judgements})]
    rows = ((query.query_id, query.text, query.cluster) for query in judged)
    qrels = sorted((row.query_id, row.passage_id, row.relevance) for row in judgements)
    folder = job.out / forum
    _count(job, forum, "queries", write_parquet(folder / "queries.parquet", records.QUERIES, rows))
    _count(job, forum, "judgements", write_parquet(folder / "qrels.parquet", QRELS, qrels))


def _count_unknown(
    job: Job, forum: str, judgements: list[Judgement], passage_ids: dict[str, int] | set[str]
) -> None:
    unknown = sum(row.passage_id not in passage_ids for row in judgements)
    if unknown:
        _count(job, forum, "unknown/judged passages", unknown)


def _count(job: Job, forum: str, name: str, number: int) -> None:
    name = f"{forum}/{name}" if forum else name
    job.counts[name] = job.counts.get(name, 0) + number
