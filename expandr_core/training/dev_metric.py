"""How well a retriever in training finds the held-out queries' positives: nDCG@10.

The queries are fused with their expansions, as in evaluation, and what they search are all passages of
the held-out examples, positives and hard negatives. A query's other positives count as found too.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from expandr_core.encoders.fusion import Fusion
from expandr_core.evaluation.metrics import mean_metrics, score_queries
from expandr_core.retrieval.exact import index_in_memory, search
from expandr_core.training.distributed import gather, rank, shares
from expandr_core.training.grad_cache import Kind, MiniBatchEncoder
from expandr_core.training.rows import TrainingRows

DEPTH = 10
MEMORY_GB = 0.5  # of the search


class DevSet(NamedTuple):
    """The held-out queries and what they search.

    Attributes:
        query_ids: (queries,)
        queries: (queries,) texts.
        expansions: of all queries one after the other, without empty ones.
        counts: (queries,) how many of the expansions are each query's.
        passage_ids: (passages,)
        passages: (passages,) texts.
        qrels: query_id, passage_id, relevance.
    """

    query_ids: pa.Array
    queries: list[str]
    expansions: list[str]
    counts: Tensor
    passage_ids: pa.Array
    passages: list[str]
    qrels: pa.Table


def dev_set(rows: TrainingRows) -> DevSet:
    """Gather the held-out examples; ids are made of the numbers that stand for them."""
    pools, lines = rows.pools, rows.dev
    numbers, first = np.unique(pools.query_numbers[lines], return_index=True)
    of_queries = pa.array(lines[first])
    written = [sample.take(of_queries).to_pylist() for sample in rows.expansions]
    texts = [[text for text in own if text] for own in zip(*written, strict=True)]
    texts = texts if written else [[] for _ in numbers]
    entries = np.concatenate(
        [np.arange(pools.first[line], pools.first[line] + pools.size[line]) for line in lines]
    ).astype(np.int64)
    texts_of = [
        (pools.numbers[entries], pools.texts.take(pa.array(entries))),
        (pools.positive_numbers[lines], rows.table["positive"].take(pa.array(lines))),
    ]
    passages: dict[int, str] = {}
    for ids, column in texts_of:
        passages |= dict(zip(ids.tolist(), column.to_pylist(), strict=True))
    pairs = np.unique([pools.query_numbers[lines], pools.positive_numbers[lines]], axis=1).T
    return DevSet(
        query_ids=pa.array([f"q{number}" for number in numbers]),
        queries=rows.table["query"].take(of_queries).to_pylist(),
        expansions=[text for own in texts for text in own],
        counts=torch.tensor([len(own) for own in texts]),
        passage_ids=pa.array([f"p{number}" for number in passages]),
        passages=list(passages.values()),
        qrels=pa.table(
            {
                "query_id": [f"q{query}" for query, _ in pairs],
                "passage_id": [f"p{passage}" for _, passage in pairs],
                "relevance": [1] * len(pairs),
            }
        ),
    )


def measure(encoder: MiniBatchEncoder, dev: DevSet, fusion: Fusion) -> float:
    """Return nDCG@10; all processes embed their share of the texts, and the first one measures.

    Returns:
        The mean over the queries; in other processes than the first, not a number.
    """

    def embedded(texts: list[str], kind: Kind) -> Tensor:
        share = shares(len(texts))[rank()]
        return gather(encoder.encode(texts[share], kind), len(texts)).cpu()

    queries = embedded(dev.queries, "query")
    expansions = embedded(dev.expansions, "document")
    passages = fusion.scaled(embedded(dev.passages, "document"))
    if rank():
        return float("nan")
    index = index_in_memory(dev.passage_ids, passages.numpy())
    vectors = fusion.fuse(queries, expansions, dev.counts).numpy()
    run = search(dev.query_ids, vectors, index, DEPTH, MEMORY_GB)
    return mean_metrics(score_queries(dev.qrels, run))["ndcg_at_10"]
