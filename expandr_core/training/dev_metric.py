"""How well a retriever in training finds the positives of the held-out queries: nDCG@10.

The queries are fused with their expansions, as in evaluation (though never by ranks), and search all
passages of the held-out examples, positives and hard negatives. All known positives of a query among
them are relevant.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from expandr_core.encoders.fusion import Fusion
from expandr_core.evaluation.metrics import mean_metrics, score_queries
from expandr_core.retrieval.exact import search
from expandr_core.retrieval.index import index_in_memory
from expandr_core.training.distributed import gather, rank, shares
from expandr_core.training.grad_cache import GradCache, Kind
from expandr_core.training.rows import TrainingRows

DEPTH = 10
MEMORY_GB = 0.5  # for the search


class DevSet(NamedTuple):
    """The held-out queries, and the passages that they search.

    Attributes:
        query_ids: (queries,)
        queries: (queries,) texts.
        expansions: texts for all queries, one query after the other, without empty ones.
        counts: (queries,) number of each query's expansions.
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
    """Collect the held-out examples; their ids are made from the numbers that stand for them."""
    pools, lines = rows.pools, rows.dev

    # a query occurs in several examples if it has several positives; take its first
    numbers, first = np.unique(pools.query_numbers[lines], return_index=True)
    of_queries = pa.array(lines[first])
    samples = [sample.take(of_queries).to_pylist() for sample in rows.expansions]
    expansions = [[text for text in own if text] for own in zip(*samples, strict=True)]
    expansions = expansions if samples else [[] for _ in numbers]

    # the texts of all hard negatives and positives, by passage number
    entries = np.concatenate(
        [np.arange(pools.first[line], pools.first[line] + pools.size[line]) for line in lines]
    ).astype(np.int64)
    passages: dict[int, str] = {}
    for passage_numbers, texts in (
        (pools.numbers[entries], pools.texts.take(pa.array(entries))),
        (pools.positive_numbers[lines], rows.table["positive"].take(pa.array(lines))),
    ):
        passages |= dict(zip(passage_numbers.tolist(), texts.to_pylist(), strict=True))

    pairs = np.unique([pools.query_numbers[lines], pools.positive_numbers[lines]], axis=1).T
    return DevSet(
        query_ids=pa.array([f"q{number}" for number in numbers]),
        queries=rows.table["query"].take(of_queries).to_pylist(),
        expansions=[text for own in expansions for text in own],
        counts=torch.tensor([len(own) for own in expansions]),
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


def measure(encoder: GradCache, dev: DevSet, fusion: Fusion) -> float:
    """Return the mean nDCG@10; every process embeds its share of the texts, and the first one searches.

    Returns:
        NaN in the other processes.
    """

    def embedded(texts: list[str], kind: Kind) -> Tensor:
        share = shares(len(texts))[rank()]
        return gather(encoder.encode(texts[share], kind), len(texts)).cpu()

    ends = dev.counts.cumsum(0).tolist()
    own = [dev.expansions[end - n : end] for end, n in zip(ends, dev.counts.tolist(), strict=True)]
    texts = [fusion.texts(*pair) for pair in zip(dev.queries, own, strict=True)]
    counts = torch.tensor([len(expansions) for _, expansions in texts])
    queries = embedded([query for query, _ in texts], "query")
    expansions = embedded([text for _, expansions in texts for text in expansions], "document")
    passages = fusion.scaled(embedded(dev.passages, "document"))
    if rank():
        return float("nan")
    index = index_in_memory(dev.passage_ids, passages.numpy())
    vectors = fusion.fuse(queries, expansions, counts).numpy()
    run = search(dev.query_ids, vectors, index, DEPTH, MEMORY_GB)
    return mean_metrics(score_queries(dev.qrels, run))["ndcg_at_10"]
