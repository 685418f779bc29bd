"""Mine hard negatives: what the current retriever ranks first for an expanded query, but is wrong.

Input roles: `examples` (a retriever.parquet), `retriever`, `embeddings` (the corpus as `encode`
wrote it, by the same retriever), `corpus` (a corpus.parquet), and `expansions` (shards; optional).
Writes negatives.parquet, a row a query, sorted by query_id, the nearest negative first.

Left out are the query's positives, passages with the very text of a positive, empty passages, and,
as in search, the passage that has the query's id. With a margin, passages that are about as similar to
the query as its positive are left out too, since such are often relevant and only not judged
(NV-Retriever: Moreira et al., 2024, "TopK-PercPos"; `relative_margin` of sentence-transformers).
"""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.data.tables import file_in, join_expansions, places_of, read_columns
from expandr_core.encoders.encode import Vectors
from expandr_core.errors import DataError
from expandr_core.options.base import Options, Positive
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions, IndexOptions
from expandr_core.options.training import MiningOptions
from expandr_core.records import NEGATIVES, Passage, passages_in
from expandr_core.runtime.job import Job
from expandr_core.training.hard_negatives import PASSAGES, Numbers

if TYPE_CHECKING:
    from expandr_core.encoders.encode import Encoder
    from expandr_core.retrieval.exact import Index

VERSION = 3
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
            fusion=options.retriever.fusion,
            index=options.retriever.index,
            expansions_per_query=options.training.expansions_per_query,
        )


OPTIONS = MineOptions


def run(job: Job) -> None:
    """Write `negatives.parquet`, block of queries by block."""
    from expandr_core.encoders.encode import encoder_of
    from expandr_core.retrieval.exact import open_index

    encoder = encoder_of(job)
    with job.all_shards("embeddings") as folders:
        _mine(job, encoder, open_index(folders))


def _mine(job: Job, encoder: "Encoder", index: "Index") -> None:
    from expandr_core.encoders.encode import encode_expanded
    from expandr_core.retrieval.exact import nearest

    options: MineOptions = job.options
    if index.dimensions != encoder.dimensions:
        raise DataError(
            f"the embeddings have {index.dimensions} dimensions, the retriever "
            f"{encoder.dimensions}; encode the corpus with this retriever"
        )
    names = ["query_id", "query", "positive_id", "positive"]
    examples = read_columns(file_in(job.inputs["examples"], "retriever.parquet"), names)
    query_ids = examples["query_id"].unique().sort()
    queries = examples["query"].take(places_of(query_ids, examples["query_id"]))
    samples: list[Any] = []
    if "expansions" in job.spec.inputs:
        shards = job.shards("expansions")
        samples = join_expansions(shards, query_ids, options.expansions_per_query)
    passages = read_passages(file_in(job.inputs["corpus"], "corpus.parquet"), index.passage_ids)
    contents, wrong = forbidden(examples, query_ids, index.passage_ids, passages)
    owners = places_of(examples["query_id"], query_ids)
    itself = places_of(query_ids, index.passage_ids)
    counts = {"queries": len(query_ids), "negatives": 0, "queries without a negative": 0}
    if options.mining.margin:
        counts["dropped/negatives as similar as a positive"] = 0
    with pq.ParquetWriter(job.out / "negatives.parquet", NEGATIVES, compression="zstd") as writer:
        for start in range(0, len(query_ids), QUERIES_AT_ONCE):
            block = slice(start, start + QUERIES_AT_ONCE)
            texts = [sample[block].to_pylist() for sample in samples]
            asked = queries[block].to_pylist()
            written = [[text for text in of_one if text] for of_one in zip(*texts, strict=True)]
            written = written if samples else [[] for _ in asked]
            vectors = encode_expanded(encoder, asked, written, options.fusion.expansion_weight)
            scores, places = nearest(
                vectors, index, options.mining.depth, options.index.search_memory_gb
            )
            numbers = np.arange(start, start + len(places))[:, None]
            kept = ~np.isin(numbers * PASSAGES + contents[places], wrong)
            kept &= places != itself[block][:, None]
            kept &= contents[places] >= 0
            if options.mining.margin:
                lines = np.flatnonzero((owners >= start) & (owners < start + len(places)))
                positives = encoder.encode_passages(
                    examples["positive"].take(pa.array(lines)).to_pylist()
                )
                least = least_similarity(vectors, positives, owners[lines] - start)
                close = scores > margin_below(least, options.mining.margin)[:, None]
                counts["dropped/negatives as similar as a positive"] += int((kept & close).sum())
                kept &= ~close
            found = [
                column.take(pa.array(places[kept])) for column in (index.passage_ids, passages)
            ]
            writer.write_table(rows(query_ids[block], kept.sum(axis=1), found))
            counts["negatives"] += int(kept.sum())
            counts["queries without a negative"] += int((~kept.any(axis=1)).sum())
            job.progress(start + len(places), len(query_ids), "queries")
    job.counts |= counts


def least_similarity(queries: Vectors, positives: Vectors, owners: Numbers) -> Vectors:
    """Return how similar each query is to the least similar of its positives.

    Args:
        queries: (queries, dimensions)
        positives: (positives, dimensions)
        owners: (positives,) the query that each one is of; every query has one.

    >>> queries = np.eye(2, dtype=np.float32)
    >>> positives = np.array([[0.5, 9], [0.25, 9], [9, 1]], dtype=np.float32)
    >>> least_similarity(queries, positives, np.array([0, 0, 1])).tolist()
    [0.25, 1.0]
    """
    least = np.full(len(queries), np.inf, dtype=np.float32)
    np.minimum.at(least, owners, (queries[owners] * positives).sum(axis=1))
    return least


def margin_below(similarities: Vectors, margin: float) -> Vectors:
    """Lower similarities by a share of their size, also negative ones.

    >>> margin_below(np.array([1, -1], dtype=np.float32), 0.25).tolist()
    [0.75, -1.25]
    """
    return similarities - np.float32(margin) * np.abs(similarities)


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
    """Read the texts of the corpus in the order of the index, as the encoder saw them.

    Raises:
        DataError: if the index knows a passage that the corpus lacks.
    """
    ids, texts = [], []
    for batch in pq.ParquetFile(path).iter_batches(columns=list(Passage._fields)):
        passages = passages_in(batch)
        ids.append(pa.array([each.passage_id for each in passages], pa.large_string()))
        texts.append(pa.array([each.content for each in passages], pa.large_string()))
    places = places_of(passage_ids, pa.concat_arrays(ids))
    if (places < 0).any():
        missing = passage_ids[int(np.argmin(places))].as_py()
        raise DataError(
            f"passage {missing!r} of the embeddings is not in the corpus; encode this corpus"
        )
    return pa.concat_arrays(texts).take(pa.array(places))


def forbidden(
    examples: dict[str, Any], query_ids: Any, passage_ids: Any, passages: Any
) -> tuple[Numbers, Numbers]:
    """Number the passages by their text, and pair queries with the texts of their positives.

    Returns:
        Numbers of the passages' texts (passages,), -1 for an empty one; and the sorted numbers of
        forbidden pairs: place of the query in `query_ids` * PASSAGES + number of the text.
    """
    encoded = pa.concat_arrays([passages, examples["positive"]]).dictionary_encode()
    numbers = encoded.indices.to_numpy().astype(np.int64)
    contents, positives = np.split(numbers, [len(passages)])
    owners = places_of(examples["query_id"], query_ids)
    by_id = places_of(examples["positive_id"], passage_ids)
    known = by_id >= 0
    pairs = [owners * PASSAGES + positives, (owners * PASSAGES + contents[by_id])[known]]
    empty = places_of(pa.array([""], pa.large_string()), encoded.dictionary)[0]
    return np.where(contents == empty, -1, contents), np.unique(np.concatenate(pairs))
