"""The best hits of queries whose expansions are weighed in several ways, in one pass over the corpus."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from expandr_core.encoders.encode import Encoder, Vectors
from expandr_core.options.retriever import FusionOptions
from expandr_core.retrieval.exact import ranked, run_of
from expandr_core.retrieval.expanded import ExpandedSearch
from expandr_core.retrieval.gate import TOP
from expandr_core.retrieval.gate_features import Encoded


def runs_by_weight(
    search: ExpandedSearch, block: pa.Table, encoded: Encoded, weights: Sequence[float]
) -> dict[float, pa.Table]:
    """Find the first ten hits of each query, by weight of its expansions.

    Args:
        search: how an expanded query is searched with; its own weight does not matter.
        block: query_id, query and expansions (a list of texts).
        encoded: their vectors.
        weights: weights.

    Returns:
        A run (see RUN) for each weight: the queries in their order.
    """
    if search.fusion.method != "vector":
        return {weight: _searched_by(search, block, weight) for weight in weights}
    vectors = [_fused(search.encoder, encoded, weight) for weight in weights]
    ids = block["query_id"].combine_chunks()
    found = ranked(
        pa.concat_arrays([ids] * len(weights)),
        np.concatenate(vectors),
        search.index,
        TOP,
        search.memory_gb,
        search.ranking.identical_ids,
    )
    size = len(ids)
    return {
        weight: run_of(ids, found.of(slice(n * size, (n + 1) * size)), search.index)
        for n, weight in enumerate(weights)
    }


def _searched_by(search: ExpandedSearch, block: pa.Table, weight: float) -> pa.Table:
    """Search with one weight, as deep as the ranking goes: fused ranks depend on that."""
    fusion = FusionOptions(
        expansion_weight=weight, method=search.fusion.method if weight else "vector"
    )
    weighted = ExpandedSearch(
        search.encoder, search.index, fusion, search.ranking, search.memory_gb
    )
    [(_, run)] = weighted.search([block], lambda _: None)
    return run.filter(pc.field("rank") <= TOP)


def _fused(encoder: Encoder, encoded: Encoded, weight: float) -> Vectors:
    """Fuse queries and expansions as evaluation does."""
    import torch

    from expandr_core.encoders.fusion import Fusion

    if weight == 0:
        return encoded.queries
    queries, expansions = map(torch.from_numpy, (encoded.queries, encoded.expansions))
    fusion = Fusion(encoder.normalize, weight)
    return fusion.fuse(queries, expansions, torch.tensor(encoded.counts)).numpy()
