"""Mine hard negatives: passages that the current retriever ranks first for an expanded query, wrongly.

Input roles: `examples` (a retriever.parquet), `retriever`, `embeddings` (the corpus as `encode` wrote it
with the same retriever), `corpus` (a corpus.parquet), and `expansions` (shards; optional). Writes
negatives.parquet, one row per query, sorted by query_id, the nearest negative first.

Queries are expanded as in training: by `training.expansion_weight`, if it is given, and never by ranks.

Left out are the query's positives, passages with the text of a positive, empty passages, and, as in
search, the passage that has the query's id. With a margin, passages about as similar to the query as
its positive are left out too: they are often relevant but unjudged (NV-Retriever: Moreira et al., 2024,
"TopK-PercPos"; `relative_margin` of sentence-transformers).
"""

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expandr_core.data.tables import file_in, join_expansions, positions_of, read_columns
from expandr_core.encoders.encode import Vectors
from expandr_core.errors import DataError
from expandr_core.options.base import Options, Positive
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions, IndexOptions
from expandr_core.options.training import MiningOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.records import NEGATIVES
from expandr_core.runtime.job import Job
from expandr_core.runtime.memory import search_memory
from expandr_core.runtime.shards import query_count
from expandr_core.training.hard_negatives import PASSAGES, Numbers

if TYPE_CHECKING:
    from expandr_core.encoders.encode import Encoder
    from expandr_core.encoders.vector_cache import Digests
    from expandr_core.retrieval.index import Index
    from expandr_core.training.mining import Texts

VERSION = 4
ROLE = "embed"
ISOLATION = "on-gpu"
QUERIES_AT_ONCE = 1024


class MineOptions(Options):
    """How deep to mine, and how texts become vectors."""

    mining: MiningOptions
    encoding: EncodingOptions
    fusion: FusionOptions
    index: IndexOptions = IndexOptions()
    expansions_per_query: Positive = 1

    @classmethod
    def of(cls, options: JointLoopOptions) -> Self:
        """Mine for the retriever's training."""
        return cls(
            mining=options.mining,
            encoding=options.retriever.encoding,
            fusion=options.training_fusion,
            index=options.retriever.index,
            expansions_per_query=options.training.expansions_per_query,
        )


OPTIONS = MineOptions
BYTES_GROW_WITH = "queries"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the queries to encode, and the similarities to compute."""
    queries, passages = step.counts["queries"], step.inputs["embeddings"].counts["passages"]
    return {"queries": queries, "similarities": queries * passages}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every query gets negatives."""
    return {"queries": query_count(step.store.local(step.inputs["examples"]))}


def run(job: Job) -> None:
    """Write `negatives.parquet`, after one search for as many queries as fit into memory."""
    from expandr_core.encoders.encode import encoder_of
    from expandr_core.encoders.vector_cache import PASSAGES, read_digests
    from expandr_core.retrieval.index import open_index
    from expandr_core.training.mining import Texts

    options: MineOptions = job.options
    encoder = encoder_of(job, options.encoding)
    memory_gb = search_memory(options.index.search_memory_gb)
    with job.all_shards("embeddings") as folders:
        index = open_index(folders, encoder.model.device.type)
        if index.dimensions != encoder.dimensions:
            raise DataError(
                f"the embeddings have {index.dimensions} dimensions, the retriever "
                f"{encoder.dimensions}; encode the corpus with this retriever"
            )
        contents = np.concatenate([read_digests(folder / PASSAGES) for folder in folders])
        path = file_in(job.inputs["corpus"], "corpus.parquet")
        texts = Texts(path, index.passage_ids, contents)
        with pq.ParquetWriter(
            job.out / "negatives.parquet", NEGATIVES, compression="zstd"
        ) as writer:
            for found in _mine(job, encoder, index, contents):
                _write(writer, found, index, texts, memory_gb)


class Mined(NamedTuple):
    """What some queries found.

    Attributes:
        query_ids: (queries,) Arrow array.
        positions: (queries, depth) in the index, the nearest first.
        kept: (queries, depth) whether it is a hard negative.
    """

    query_ids: Any
    positions: Numbers
    kept: NDArray[np.bool_]

    def of(self, queries: slice) -> "Mined":
        """Return those of some queries."""
        return Mined(self.query_ids[queries], self.positions[queries], self.kept[queries])


def _mine(job: Job, encoder: "Encoder", index: "Index", contents: "Digests") -> Iterator[Mined]:
    """Search for all queries, as many at once as fit into memory."""
    from expandr_core.retrieval.exact import nearest, queries_at_once
    from expandr_core.training.mining import forbidden

    options: MineOptions = job.options
    depth, memory_gb = options.mining.depth, search_memory(options.index.search_memory_gb)
    names = ["query_id", "query", "positive_id", "positive"]
    examples = read_columns(file_in(job.inputs["examples"], "retriever.parquet"), names)
    query_ids = examples["query_id"].unique().sort()
    queries = examples["query"].take(positions_of(query_ids, examples["query_id"]))
    samples: list[Any] = []
    if "expansions" in job.spec.inputs:
        shards = job.shards("expansions")
        samples = join_expansions(shards, query_ids, options.expansions_per_query)
    numbers, wrong = forbidden(examples, query_ids, index.passage_ids, contents)
    itself = positions_of(query_ids, index.passage_ids)
    counts = {"queries": len(query_ids), "negatives": 0, "queries without a negative": 0}
    if options.mining.margin:
        counts["dropped/negatives as similar as a positive"] = 0
    job.progress(0, len(query_ids), "queries")  # everything is loaded
    blocks = queries_at_once(index, depth, memory_gb) // QUERIES_AT_ONCE
    for group in _slices(len(query_ids), max(1, blocks) * QUERIES_AT_ONCE):
        vectors = np.empty((group.stop - group.start, index.dimensions), np.float32)
        for block in _slices(len(vectors), QUERIES_AT_ONCE):
            here = slice(group.start + block.start, group.start + block.stop)
            own = [sample[here].to_pylist() for sample in samples]
            vectors[block] = _encode(encoder, queries[here].to_pylist(), own, options.fusion)
            job.progress(here.stop, len(query_ids), "queries")
        scores, positions = nearest(vectors, index, depth, memory_gb)

        # (queries, depth): neither a positive's text, nor the passage of the query's id, nor empty
        found = numbers[positions]
        asked = np.arange(group.start, group.stop)[:, None]
        kept = ~np.isin(asked * PASSAGES + found, wrong)
        kept &= positions != itself[group][:, None]
        kept &= found >= 0
        if options.mining.margin:
            limits = _limits(encoder, vectors, examples, query_ids[group], options.mining.margin)
            close = scores > limits[:, None]
            counts["dropped/negatives as similar as a positive"] += int((kept & close).sum())
            kept &= ~close
        counts["negatives"] += int(kept.sum())
        counts["queries without a negative"] += int((~kept.any(axis=1)).sum())
        yield Mined(query_ids[group], positions, kept)
    job.counts |= counts


def _slices(length: int, size: int) -> Iterator[slice]:
    """Cut a length into stretches of a size.

    >>> list(_slices(5, 3))
    [slice(0, 3, None), slice(3, 5, None)]
    """
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def _limits(
    encoder: "Encoder", vectors: Vectors, examples: dict[str, Any], query_ids: Any, margin: float
) -> Vectors:
    """Return the similarity that a negative of each query may have."""
    owners = positions_of(examples["query_id"], query_ids)
    limits = []
    for block in _slices(len(vectors), QUERIES_AT_ONCE):
        lines = np.flatnonzero((owners >= block.start) & (owners < block.stop))
        texts = examples["positive"].take(pa.array(lines)).to_pylist()
        positives = encoder.encode_passages(texts)
        own = owners[lines] - block.start
        limits.append(similarity_limit(vectors[block], positives, own, margin))
    return np.concatenate(limits)


def _write(
    writer: pq.ParquetWriter, mined: Mined, index: "Index", texts: "Texts", memory_gb: float
) -> None:
    """Write the negatives of some queries with their texts, reading as many as fit at once."""
    most = memory_gb * 1e9 / 4 / (1 + texts.mean_bytes)
    blocks = list(_slices(len(mined.query_ids), QUERIES_AT_ONCE))
    ends = np.cumsum([mined.kept[block].sum() for block in blocks])
    for _, together in groupby(zip(blocks, ends // most, strict=True), lambda pair: pair[1]):
        own = [mined.of(block) for block, _ in together]
        distinct = np.unique(np.concatenate([each.positions[each.kept] for each in own]))
        read = texts.read(distinct)
        for each in own:
            chosen = each.positions[each.kept]
            columns = [
                index.passage_ids.take(pa.array(chosen)),
                read.take(pa.array(np.searchsorted(distinct, chosen))),
            ]
            writer.write_table(rows(each.query_ids, each.kept.sum(axis=1), columns))


def _encode(
    encoder: "Encoder", queries: list[str], samples: list[list[str]], fusion: FusionOptions
) -> Vectors:
    """Encode queries, each fused with its non-empty expansions, one from each sample."""
    from expandr_core.encoders.encode import encode_expanded

    expansions = [[text for text in own if text] for own in zip(*samples, strict=True)]
    return encode_expanded(encoder, queries, expansions or [[] for _ in queries], fusion)


def similarity_limit(
    queries: Vectors, positives: Vectors, owners: Numbers, margin: float
) -> Vectors:
    """Return for each query the least similarity of a positive, lowered by a share of its size.

    Args:
        queries: (queries, dimensions)
        positives: (positives, dimensions)
        owners: (positives,) the query that each belongs to; every query has at least one.
        margin: the share.

    >>> queries = np.eye(2, dtype=np.float32)
    >>> positives = np.array([[1, 9], [2, 9], [9, -1]], dtype=np.float32)
    >>> similarity_limit(queries, positives, np.array([0, 0, 1]), 0.25).tolist()
    [0.75, -1.25]
    """
    least = np.full(len(queries), np.inf, dtype=np.float32)
    np.minimum.at(least, owners, (queries[owners] * positives).sum(axis=1))
    return least - np.float32(margin) * np.abs(least)


def rows(query_ids: Any, sizes: Numbers, columns: list[Any]) -> pa.Table:
    """Cut columns into lists of the given sizes, one for each query.

    >>> letters = pa.array(["a", "b", "c"])
    >>> table = rows(pa.array(["q1", "q2"]), np.array([1, 2]), [letters, letters])
    >>> table["negatives"].to_pylist()
    [['a'], ['b', 'c']]
    """
    ends = pa.array(np.concatenate([[0], np.cumsum(sizes)]))
    lists = [pa.LargeListArray.from_arrays(ends, column) for column in columns]
    return pa.table([query_ids, *lists], names=NEGATIVES.names).cast(NEGATIVES)
