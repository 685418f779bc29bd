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

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.data.tables import file_in, join_expansions, positions_of, read_columns
from expandr_core.encoders.encode import Vectors
from expandr_core.errors import DataError
from expandr_core.options.base import Options, Positive
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions, IndexOptions
from expandr_core.options.training import MiningOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.records import NEGATIVES, Passage, passages_in
from expandr_core.runtime.job import Job
from expandr_core.runtime.shards import query_count
from expandr_core.training.hard_negatives import PASSAGES, Numbers

if TYPE_CHECKING:
    from expandr_core.encoders.encode import Encoder
    from expandr_core.retrieval.exact import Index

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
    """Write `negatives.parquet`, one block of queries after the other."""
    from expandr_core.encoders.encode import encoder_of
    from expandr_core.retrieval.exact import open_index

    options: MineOptions = job.options
    encoder = encoder_of(job, options.encoding)
    with job.all_shards("embeddings") as folders:
        _mine(job, encoder, open_index(folders))


def _mine(job: Job, encoder: "Encoder", index: "Index") -> None:
    from expandr_core.retrieval.exact import nearest

    options: MineOptions = job.options
    margin = options.mining.margin
    if index.dimensions != encoder.dimensions:
        raise DataError(
            f"the embeddings have {index.dimensions} dimensions, the retriever "
            f"{encoder.dimensions}; encode the corpus with this retriever"
        )
    names = ["query_id", "query", "positive_id", "positive"]
    examples = read_columns(file_in(job.inputs["examples"], "retriever.parquet"), names)
    query_ids = examples["query_id"].unique().sort()
    queries = examples["query"].take(positions_of(query_ids, examples["query_id"]))
    samples: list[Any] = []
    if "expansions" in job.spec.inputs:
        shards = job.shards("expansions")
        samples = join_expansions(shards, query_ids, options.expansions_per_query)
    passages = read_passages(file_in(job.inputs["corpus"], "corpus.parquet"), index.passage_ids)
    contents, wrong = forbidden(examples, query_ids, index.passage_ids, passages)
    owners = positions_of(examples["query_id"], query_ids)
    itself = positions_of(query_ids, index.passage_ids)
    counts = {"queries": len(query_ids), "negatives": 0, "queries without a negative": 0}
    if margin:
        counts["dropped/negatives as similar as a positive"] = 0
    with pq.ParquetWriter(job.out / "negatives.parquet", NEGATIVES, compression="zstd") as writer:
        for start in range(0, len(query_ids), QUERIES_AT_ONCE):
            block = slice(start, start + QUERIES_AT_ONCE)
            texts = [sample[block].to_pylist() for sample in samples]
            vectors = _encode(encoder, queries[block].to_pylist(), texts, options.fusion)
            memory = options.index.search_memory_gb
            scores, positions = nearest(vectors, index, options.mining.depth, memory)

            # (queries, depth): neither a positive's text, nor the passage of the query's id, nor empty
            numbers = np.arange(start, start + len(positions))[:, None]
            kept = ~np.isin(numbers * PASSAGES + contents[positions], wrong)
            kept &= positions != itself[block][:, None]
            kept &= contents[positions] >= 0

            if margin:
                lines = np.flatnonzero((owners >= start) & (owners < start + len(positions)))
                texts = examples["positive"].take(pa.array(lines)).to_pylist()
                positives = encoder.encode_passages(texts)
                limit = similarity_limit(vectors, positives, owners[lines] - start, margin)
                close = scores > limit[:, None]
                counts["dropped/negatives as similar as a positive"] += int((kept & close).sum())
                kept &= ~close

            mined = [each.take(pa.array(positions[kept])) for each in (index.passage_ids, passages)]
            writer.write_table(rows(query_ids[block], kept.sum(axis=1), mined))
            counts["negatives"] += int(kept.sum())
            counts["queries without a negative"] += int((~kept.any(axis=1)).sum())
            job.progress(start + len(positions), len(query_ids), "queries")
    job.counts |= counts


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


def read_passages(path: Any, passage_ids: Any) -> Any:
    """Read the texts of the corpus in the order of the index, as the encoder reads them.

    Raises:
        DataError: if a passage of the index is not in the corpus.
    """
    ids, texts = [], []
    for batch in pq.ParquetFile(path).iter_batches(columns=list(Passage._fields)):
        passages = passages_in(batch)
        ids.append(pa.array([each.passage_id for each in passages], pa.large_string()))
        texts.append(pa.array([each.content for each in passages], pa.large_string()))
    positions = positions_of(passage_ids, pa.concat_arrays(ids))
    if (positions < 0).any():
        missing = passage_ids[int(np.argmin(positions))].as_py()
        raise DataError(
            f"passage {missing!r} of the embeddings is not in the corpus; encode this corpus"
        )
    return pa.concat_arrays(texts).take(pa.array(positions))


def forbidden(
    examples: dict[str, Any], query_ids: Any, passage_ids: Any, passages: Any
) -> tuple[Numbers, Numbers]:
    """Number the passages by their text, and pair queries with the texts of their positives.

    Returns:
        The number of each passage's text (passages,), -1 if it is empty; and the sorted numbers of the
        forbidden pairs: position of the query in `query_ids` * PASSAGES + number of the text.
    """
    # the same text has the same number, in the corpus and in the examples
    encoded = pa.concat_arrays([passages, examples["positive"]]).dictionary_encode()
    numbers = encoded.indices.to_numpy().astype(np.int64)
    contents, positives = np.split(numbers, [len(passages)])

    # a positive counts by its text, and by the text that the corpus has under its id
    owners = positions_of(examples["query_id"], query_ids)
    by_id = positions_of(examples["positive_id"], passage_ids)
    in_corpus = by_id >= 0
    pairs = [owners * PASSAGES + positives, (owners * PASSAGES + contents[by_id])[in_corpus]]
    empty = positions_of(pa.array([""], pa.large_string()), encoded.dictionary)[0]
    return np.where(contents == empty, -1, contents), np.unique(np.concatenate(pairs))
