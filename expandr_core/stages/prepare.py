"""Prepare: read a collection and training triples, and split the queries.

corpus.parquet                              the collection's passages
preference.parquet, retriever.parquet       training queries with positives and negatives
pseudo_docs.parquet                         expansions of retriever.parquet, if the triples bring some
dev_queries.parquet, dev_qrels.parquet      to choose the best round
dev_corpus.parquet                          the corpus of dev, if dev comes from triples
test_queries.parquet, test_qrels.parquet    to measure on, if the collection has test judgements
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from expandr_core.data.collection import (
    Qrel,
    Query,
    check_judged,
    judged,
    known_qrels,
    write_corpus,
    write_evaluation,
)
from expandr_core.data.examples import split_judgements
from expandr_core.data.formats.beir import (
    CORPUS,
    QUERIES,
    SPLITS,
    collection_files,
    qrels_name,
    read_corpus,
    read_qrels,
    read_queries,
)
from expandr_core.data.formats.triples import (
    TripleRow,
    TripleTable,
    read_triples,
    triples_files,
)
from expandr_core.data.rows import RawFile, Reader, write_parquet
from expandr_core.data.split import SPLIT_NAMES, Split, SplitName, normalise
from expandr_core.errors import DataError
from expandr_core.generation.prompts import remove_preamble
from expandr_core.options.data import DataOptions
from expandr_core.records import EXAMPLES, EXPANSIONS, PASSAGES, Example, Passage
from expandr_core.runtime.job import Job

log = logging.getLogger(__name__)
VERSION = 3
ROLE = "data"
ISOLATION = "never"
OPTIONS = DataOptions
PSEUDO_DOCS = "pseudo_docs.parquet"
WITHOUT_NEGATIVES = "retriever/examples without negatives"  # count


def source_digests(options: DataOptions) -> dict[str, str]:
    """Return the SHA-256 of every raw file that the stage will read, by name.

    Raises:
        DataError: if files are missing.
    """
    collection, triples = find_sources(options)
    return {file.name: file.sha256() for file in [*collection.values(), *triples]}


def find_sources(
    options: DataOptions, world: Path | None = None
) -> tuple[dict[str, RawFile], list[RawFile]]:
    """Return the files of the collection, by name, and those of the triples.

    Raises:
        DataError: if files are missing.
    """
    if not options.collection and not options.triples:
        raise DataError("no data; set data.collection, data.triples, or both")
    location = str(world / "collection") if world else options.collection
    collection: dict[str, RawFile] = {}
    if location and (world or location != "demo"):
        collection = collection_files(location, train=not options.triples)
    return collection, triples_files(options.triples) if options.triples else []


class _Collection(NamedTuple):
    """Queries by id, judgements by split, and the content of the training positives by id."""

    queries: dict[str, Query]
    judgements: dict[str, list[Qrel]]
    positives: dict[str, str]


def run(job: Job) -> None:
    """Write the parquet files named above."""
    options: DataOptions = job.options
    world = job.inputs.get("world")
    if options.collection == "demo" and world is None:
        raise DataError("the demo world is missing from the inputs; make it first")
    files, triples = find_sources(options, world)
    total = sum(file.filesystem.size(file.path) or 0 for file in [*files.values(), *triples])

    def progress(done: int) -> None:
        job.progress(
            min(done, total) >> 10, total >> 10, "kB"
        )  # gzip files hold more bytes than their size

    reader = Reader(options.bad_rows, job.counts, job.spec.sources, progress)
    collection = _read_collection(job, reader, files)
    held_out = _hold_out(reader, collection)
    for name, rows in collection.judgements.items():
        if name != "train":
            _write_evaluation(job, name, *judged(collection.queries, rows))
    dev_share = 0 if "dev" in collection.judgements else options.dev_share
    split = Split(job.seed, options.preference_share, dev_share, held_out)
    if triples:
        _split_triples(job, reader, triples, split)
    else:
        _split_judgements(job, reader, collection, split)
    _count_leaked(reader, split)
    for name, number in sorted(job.counts.items()):
        level = logging.WARNING if name.startswith(("skipped", "dropped")) else logging.INFO
        log.log(level, "%s: %d", name, number)
    split.require(_queries_by_split(job.counts))


def _read_collection(job: Job, reader: Reader, files: dict[str, RawFile]) -> _Collection:
    """Read the collection, if there is one, and write its corpus."""
    if not files:
        return _Collection({}, {}, {})
    options: DataOptions = job.options
    queries = read_queries(reader, files[QUERIES], options.cluster_by)
    judgements = {
        split: read_qrels(reader, files[qrels_name(split)], queries)
        for split in SPLITS
        if qrels_name(split) in files
    }
    wanted = {row.passage_id for row in judgements.get("train", []) if row.relevance > 0}
    lines: dict[str, int] = {}
    positives: dict[str, str] = {}

    def passages() -> Iterator[Passage]:
        for passage in read_corpus(reader, files[CORPUS], lines):
            if passage.passage_id in wanted:
                positives[passage.passage_id] = passage.content
            if not passage.content:
                reader.count("corpus/empty passages")
            yield passage

    job.counts["corpus/passages"] = write_corpus(job.out, passages())
    for split, rows in judgements.items():
        file = files[qrels_name(split)]
        judgements[split] = known_qrels(reader, file, rows, lines)
        check_judged(file, judgements[split], files[QUERIES], queries, options.cluster_by)
    return _Collection(queries, judgements, positives)


def _hold_out(reader: Reader, collection: _Collection) -> set[str]:
    """Return the normalised dev and test queries; drop dev queries that are also test queries."""
    normalised = {
        split: {row.query_id: normalise(collection.queries[row.query_id].text) for row in rows}
        for split, rows in collection.judgements.items()
        if split != "train"
    }
    test = set(normalised.get("test", {}).values())
    if "dev" in normalised:
        leaked = {query_id for query_id, text in normalised["dev"].items() if text in test}
        rows = collection.judgements["dev"]
        collection.judgements["dev"] = [row for row in rows if row.query_id not in leaked]
        if leaked:
            reader.count("dropped/dev queries that are test queries", len(leaked))
        if not collection.judgements["dev"]:
            raise DataError(
                f"all queries of {qrels_name('dev')} are also test queries; name others, or delete "
                "the file to hold out training queries instead"
            )
    return test.union(*(texts.values() for texts in normalised.values()))


def _write_evaluation(job: Job, split: str, queries: Iterable, qrels: Iterable) -> None:
    """Write the queries and qrels of a split."""
    counts = write_evaluation(job.out, queries, qrels, f"{split}_")
    job.counts |= {f"{split}/{name}": number for name, number in counts.items()}


def _split_judgements(job: Job, reader: Reader, collection: _Collection, split: Split) -> None:
    """Split the queries of qrels/train.tsv; write examples, and a dev set if none is given."""
    queries, judgements, positives = collection
    result = split_judgements(reader, split, queries, judgements["train"], positives)
    for name in SPLIT_NAMES:
        _write_examples(job, name, result.examples[name])
    if result.dev:
        _write_evaluation(job, "dev", *judged(queries, result.dev))


def _split_triples(job: Job, reader: Reader, files: list[RawFile], split: Split) -> None:
    """Split the queries of the triples; write examples, and a dev set if none is given."""
    path = job.checkpoints / "triples.sqlite"
    table = TripleTable(path)
    for file in files:
        _add_triples(job, reader, table, file, split)
    if false_negatives := table.drop_false_negatives():
        reader.count("dropped/negatives that are a positive of their query", false_negatives)
    for name in SPLIT_NAMES:
        _write_examples(job, name, table.examples(name))
    if job.counts.get("dev/examples"):
        by_query = groupby(table.examples("dev"), key=lambda row: (row.query_id, row.query))
        queries = ((query_id, query, query_id) for (query_id, query), _ in by_query)
        qrels = ((row.query_id, row.positive_id, 1) for row in table.examples("dev"))
        _write_evaluation(job, "dev", queries, qrels)
        passages = ((passage_id, "", text) for passage_id, text in table.passages("dev"))
        write_parquet(job.out / "dev_corpus.parquet", PASSAGES, passages)
    if job.counts.get("pseudo_docs/kept"):
        none = (None, None)  # finish reason and tokens
        rows = ((each[0], each[1], None, each[2], *none) for each in table.expansions("retriever"))
        write_parquet(job.out / PSEUDO_DOCS, EXPANSIONS, rows)
    table.close()
    path.unlink()


def _add_triples(job: Job, reader: Reader, table: TripleTable, file: RawFile, split: Split) -> None:
    """Add the triples of a file that are not held out, and the expansions of the retriever's queries."""
    for row in read_triples(reader, file):
        name = split.of(row.triples[0].query)
        if name is None:
            continue
        for triple in row.triples:
            if not table.add(triple, file.source, name):
                reader.count(f"dropped/{file.name}/repeated triple")
        if row.expansion and name == "retriever":
            _add_expansion(job, reader, table, file, row)


def _add_expansion(
    job: Job, reader: Reader, table: TripleTable, file: RawFile, row: TripleRow
) -> None:
    """Keep the expansion of a row without its lead-in, once for each query; count what is dropped."""
    options: DataOptions = job.options
    if options.pseudo_docs == "ignore":
        reader.count("pseudo_docs/ignored")
        return
    text = remove_preamble(row.expansion)
    if text != row.expansion:
        reader.count("pseudo_docs/lead-ins removed")
    if not text:
        reader.count("pseudo_docs/empty")
    elif table.add_expansion(row.triples[0], file.source, text):
        reader.count("pseudo_docs/kept")
    else:
        reader.count("pseudo_docs/repeated")


def _write_examples(job: Job, split: SplitName, examples: Iterable[Example]) -> None:
    """Write the training rows of a split (dev has none) and count its queries by source."""

    bare = 0

    def counted() -> Iterator[Example]:
        nonlocal bare
        previous = ""
        for example in examples:
            bare += not example.negative_ids
            if example.query_id != previous:
                name = f"{split}/queries/{example.source}"
                job.counts[name] = job.counts.get(name, 0) + 1
                previous = example.query_id
            yield example

    if split == "dev":
        rows = sum(1 for _ in counted())
    else:
        rows = write_parquet(job.out / f"{split}.parquet", EXAMPLES, counted())
    job.counts[f"{split}/examples"] = rows
    if split == "retriever":
        job.counts[WITHOUT_NEGATIVES] = bare


def _queries_by_split(counts: dict[str, float]) -> dict[SplitName, int]:
    """Sum the queries of each split over all sources.

    >>> _queries_by_split({"dev/queries/nq": 1, "dev/queries/squad": 2, "preference/queries/nq": 3})
    {'preference': 3, 'retriever': 0, 'dev': 3}
    """
    queries: dict[SplitName, int] = dict.fromkeys(SPLIT_NAMES, 0)
    for name, number in counts.items():
        split, _, kind = name.partition("/")
        if split in queries and kind.startswith("queries/"):
            queries[split] += int(number)
    return queries


def _count_leaked(reader: Reader, split: Split) -> None:
    """Count the training queries dropped because they are dev or test queries; show three."""
    if not split.leaked:
        return
    reader.count("dropped/training queries that are dev or test queries", len(split.leaked))
    first = ", ".join(map(repr, sorted(split.leaked)[:3]))
    log.warning("dropped training queries that are dev or test queries, such as %s", first)
