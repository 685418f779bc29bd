"""Ranks in the whole corpus, by counting: a matrix product and a comparison, block by block, no top-k.

The products are computed in single precision. Those too close to their limit for that are computed again
in double precision, so a count depends neither on the blocks nor on the machine.
"""

import numpy as np
from numpy.typing import NDArray

from expandr_core.encoders.encode import Vectors
from expandr_core.retrieval.index import Index, Positions, require_finite
from expandr_core.retrieval.products import lengths_of, summation_error, tiles
from expandr_core.retrieval.proposals import passages_at_once

Limits = NDArray[np.float64]


def count_above(
    queries: Vectors, limits: Limits, ignored: Positions, index: Index, memory_gb: float
) -> Positions:
    """Count the passages whose inner product with a query is above a limit.

    Args:
        queries: (queries, dimensions)
        limits: (queries, limits) of each query; those that are no number count nothing.
        ignored: (pairs, 2) row of a query, and position of a passage that it does not count.
        index: the encoded corpus, which is read once.
        memory_gb: limit for vectors and products.

    Returns:
        (queries, limits) numbers of passages.

    Raises:
        DataError: if a vector is not finite, as those of a diverged retriever.
    """
    import torch

    counts = np.zeros(limits.shape, np.int64)
    ignored = ignored[np.argsort(ignored[:, 1], kind="stable")]
    lengths = lengths_of(queries)
    require_finite(lengths)
    device = index.devices[0]
    asked = torch.from_numpy(queries).to(device)
    for block in index.blocks(passages_at_once(index, memory_gb), [device]):
        errors = lengths * float(block.lengths.max()) * summation_error(index.dimensions)
        errors = errors[:, None] + np.abs(limits) * 2.0**-23  # as the limits are rounded too
        low, high = (
            torch.from_numpy(each.astype(np.float32)).to(device)
            for each in (limits - errors, limits + errors)
        )
        for rows, own, products in tiles(block.vectors, asked):
            start = block.start + rows.start
            ends = np.searchsorted(ignored[:, 1], [start, start + len(products)])
            pairs = ignored[slice(*ends)] - [own.start, start]
            pairs = pairs[(pairs[:, 0] >= 0) & (pairs[:, 0] < products.shape[1])]
            products[pairs[:, 1], pairs[:, 0]] = -torch.inf
            for column in range(limits.shape[1]):
                above = products > high[own, column]
                counts[own, column] += above.sum(0, dtype=torch.int32).cpu().numpy()
                close = ((products >= low[own, column]) & ~above).nonzero().cpu().numpy()
                close += [start, own.start]
                exact = index.products(queries, close[:, 1], close[:, 0])
                found = close[exact > limits[close[:, 1], column], 1]
                counts[:, column] += np.bincount(found, minlength=len(counts))
    return counts


def vectors_at(index: Index, positions: Positions) -> Vectors:
    """Read the vectors at some positions of the index, as float32; (positions, dimensions)."""
    vectors = np.empty((len(positions), index.dimensions), np.float32)
    for number, start in enumerate(index.starts.tolist()):
        shard = index.opened(number).numpy()
        rows = np.flatnonzero((positions >= start) & (positions < start + len(shard)))
        vectors[rows] = shard[positions[rows] - start]
    return vectors
