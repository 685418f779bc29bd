"""Dataset: read a dataset to measure on, and write it as `prepare` writes the test split.

corpus.parquet, queries.parquet, qrels.parquet    without queries that have no judgements

A dataset with subsets (CQADupStack) has a folder with these three for each. The source is an archive,
downloaded and checked by its MD5, or a folder or s3:// URL in one of `data.formats`.

Datasets of the catalog follow beir's rules. Judgements of passages missing from the corpus are kept and
counted: trec_eval treats such a passage as relevant but not retrieved. Of two judgements of one pair the
last wins. In other datasets both are bad rows, as in `prepare`.
"""

import logging
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from expandr_core.data.archives import fetch_archive, inside
from expandr_core.data.catalog import Dataset
from expandr_core.data.collection import (
    Collection,
    check_judged,
    judged,
    known_qrels,
    write_corpus,
    write_evaluation,
)
from expandr_core.data.formats import format_of
from expandr_core.data.formats.nanobeir import local_copy
from expandr_core.data.rows import RawFile, Reader
from expandr_core.options.base import Options, added, runtime
from expandr_core.options.data import DataOptions
from expandr_core.runtime.job import Job

log = logging.getLogger(__name__)
VERSION = 4
ROLE = "data"
ISOLATION = "never"


class DatasetOptions(Options):
    """Which dataset, and where it is."""

    location: str = runtime("", description="URL of an archive, a folder, or an s3:// URL.")
    split: str = Field(description="Whose queries are scored.")
    name: str = Field(
        default="", description="Name in the catalog, also the folder in an archive; else empty."
    )
    md5: str = Field(default="", description="MD5 of an archive; empty for files.")
    subsets: tuple[str, ...] = Field(default=(), description="Subfolders that are datasets.")
    bad_rows: Literal["refuse", "skip"] = Field(
        default="refuse", description="For files; an archive's bad rows are skipped."
    )
    cluster_by: str = added(
        "", description="Field of a query's metadata, see data.cluster_by; unused if none has it."
    )


OPTIONS = DatasetOptions
DEFAULTS = DataOptions()


def options_of(dataset: Dataset, data: DataOptions = DEFAULTS) -> DatasetOptions:
    """Return the options that read a dataset; files on the hub are downloaded into its cache."""
    return DatasetOptions(
        location=local_copy(dataset.location, dataset.split),
        split=dataset.split,
        name=dataset.name if dataset.benchmark != "other" else "",
        md5=dataset.md5,
        subsets=dataset.subsets,
        bad_rows=data.bad_rows,
        cluster_by=data.cluster_by if dataset.benchmark == "other" else "",
    )


def source_digests(options: DatasetOptions) -> dict[str, str]:
    """Return the SHA-256 of every raw file, by name; see `find_sources`."""
    return {file.name: file.sha256() for file in find_sources(options)}


def find_sources(options: DatasetOptions) -> list[RawFile]:
    """Return the raw files; none for an archive, which `md5` identifies.

    Raises:
        DataError: if files are missing.
    """
    return [] if options.md5 else [file for *_, files in _sources(options) for file in files]


def _sources(
    options: DatasetOptions, archive: Path | None = None
) -> list[tuple[str, Any, list[RawFile]]]:
    """Return (subset, format, files) of each subset, or of the whole dataset with the subset ""."""
    found = []
    for subset in options.subsets or [""]:
        folder = f"{options.name if archive else options.location}/{subset}".rstrip("/")
        folder = inside(archive, folder) if archive else folder
        format_ = format_of(folder)
        found.append((subset, format_, format_.find(folder, options.split, subset or "collection")))
    return found


def run(job: Job) -> None:
    """Read the dataset and write its files."""
    options: DatasetOptions = job.options
    archive = None
    if options.md5:
        archive = fetch_archive(options.location, options.md5, job.checkpoints)
    sources = _sources(options, archive)
    sizes = [sum(file.filesystem.size(file.path) or 0 for file in files) for _, _, files in sources]
    total, done = sum(sizes), 0
    for (subset, format_, files), size in zip(sources, sizes, strict=True):

        def progress(read: int, before: int = done) -> None:
            job.progress(min(before + read, total) >> 10, total >> 10, "kB")

        bad_rows = "skip" if archive else options.bad_rows
        reader = Reader(bad_rows, job.counts, job.spec.sources, progress)
        collection = format_.read(
            reader, files, options.split, not options.name, options.cluster_by
        )
        _write(job, subset, reader, collection)
        done += size
    if archive:
        archive.unlink()
    for name, number in sorted(job.counts.items()):
        level = logging.WARNING if {"skipped", "unknown"} & set(name.split("/")) else logging.INFO
        log.log(level, "%s: %d", name, number)


def _write(job: Job, subset: str, reader: Reader, collection: Collection) -> None:
    """Write the corpus, and the judged queries with their qrels."""
    folder, prefix = job.out / subset, f"{subset}/" if subset else ""
    counts = {"passages": write_corpus(folder, collection.passages)}
    queries, qrels = collection.queries, collection.qrels
    options: DatasetOptions = job.options
    if not options.name:
        qrels = known_qrels(reader, collection.qrels_file, qrels, collection.lines)
    elif unknown := sum(row.passage_id not in collection.lines for row in qrels):
        counts["unknown/judged passages"] = unknown
    asked = {row.query_id for row in qrels}
    if alone := all(queries[each].cluster is None for each in asked):
        queries = {each: queries[each]._replace(cluster=each) for each in asked}
    check_judged(collection.qrels_file, qrels, collection.queries_file, queries, options.cluster_by)
    if alone:
        log.info('no query has "%s": each is an observation of its own', options.cluster_by)
    counts |= write_evaluation(folder, *judged(queries, qrels))
    job.counts |= {f"{prefix}{name}": number for name, number in counts.items()}
