"""The features of the gate for many queries, from their texts, runs and vectors."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from expandr_core.data.terms import terms
from expandr_core.encoders.encode import Encoder, Vectors
from expandr_core.retrieval.gate import Floats, after_features, before_features
from expandr_core.retrieval.run_fusion import spans


class Encoded(NamedTuple):
    """The vectors of queries and of their expansions.

    Attributes:
        queries: (queries, dimensions)
        expansions: (texts, dimensions), in the order of the queries.
        counts: how many expansions each query has.
    """

    queries: Vectors
    expansions: Vectors
    counts: list[int]


def encode_apart(encoder: Encoder, block: pa.Table) -> Encoded:
    """Encode queries and expansions; the block has query and expansions (a list of texts)."""
    expansions = block["expansions"].to_pylist()
    texts = [text for own in expansions for text in own]
    return Encoded(
        encoder.encode_queries(block["query"].to_pylist()),
        encoder.encode_passages(texts),
        [len(own) for own in expansions],
    )


def describe_before(block: pa.Table, alone: pa.Table) -> Floats:
    """Describe queries by themselves; (queries, 3).

    Args:
        block: query_id and query.
        alone: the run of the queries alone (see RUN).
    """
    rows, scores = spans(alone), alone["score"].to_numpy()
    pairs = zip(block["query_id"].to_pylist(), block["query"].to_pylist(), strict=True)
    found = [before_features(len(terms(text)), scores[rows.get(q, slice(0))]) for q, text in pairs]
    return np.array(found).reshape(len(block), -1)


def describe_after(
    block: pa.Table, alone: pa.Table, expanded: pa.Table, encoded: Encoded
) -> Floats:
    """Describe queries with their expansions; (queries, 6).

    Args:
        block: query_id and query.
        alone: the run of the queries alone (see RUN).
        expanded: the run of the expanded queries.
        encoded: their vectors.
    """
    hits = [(run["passage_id"].to_pylist(), spans(run)) for run in (alone, expanded)]
    ends = np.cumsum(encoded.counts).tolist()
    found = []
    for row, (query_id, before) in enumerate(
        zip(block["query_id"].to_pylist(), describe_before(block, alone), strict=True)
    ):
        own = encoded.expansions[ends[row] - encoded.counts[row] : ends[row]]
        tops = [ids[rows.get(query_id, slice(0))] for ids, rows in hits]
        found.append(after_features(before, encoded.queries[row], own, *tops))
    return np.array(found).reshape(len(block), -1)
