"""Ranks in the whole corpus, by counting: a matrix product and a comparison, block by block, no top-k.

The products are computed in single precision. Those too close to their limit for that are computed again
in double precision, so a count depends neither on the blocks nor on the machine.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from expandr_core.encoders.encode import Vectors
from expandr_core.errors import DataError
from expandr_core.retrieval.exact import Index, Positions

Limits = NDArray[np.float64]
_PRODUCTS_AT_ONCE = 1 << 24  # components, in double precision


def count_above(
    queries: Vectors,
    limits: Limits,
    ignored: Positions,
    index: Index,
    memory_gb: float,
    device: str = "cpu",
) -> Positions:
    """Count the passages whose inner product with a query is above a limit.

    Args:
        queries: (queries, dimensions)
        limits: (queries, limits) of each query; those that are no number count nothing.
        ignored: (pairs, 2) row of a query, and position of a passage that it does not count.
        index: the encoded corpus, which is read once.
        memory_gb: limit for vectors and products, half each.
        device: where the products are computed.

    Returns:
        (queries, limits) numbers of passages.

    Raises:
        DataError: if a vector is not finite, as those of a diverged retriever.
    """
    import torch

    counts = np.zeros(limits.shape, np.int64)
    ignored = ignored[np.argsort(ignored[:, 1], kind="stable")]
    lengths = np.linalg.norm(queries, axis=1)
    half, start = memory_gb * 1e9 / 2, 0
    for block in index.blocks(max(1, int(half / (4 * index.dimensions)))):
        longest = float(np.linalg.norm(block, axis=1).max())
        if not np.isfinite(longest) or not np.isfinite(lengths).all():
            raise DataError(
                "vectors are not finite numbers; the retriever may have diverged in training: "
                "lower its learning rate"
            )
        errors = (
            lengths * longest * index.dimensions * 2.0**-23
        )  # twice the bound for any summation
        ends = np.searchsorted(ignored[:, 1], [start, start + len(block)])
        here = ignored[slice(*ends)] - [0, start]
        passages = torch.from_numpy(block).to(device)
        at_once = max(1, int(half / (8 * len(block))))
        for first in range(0, len(queries), at_once):
            rows = slice(first, first + at_once)
            products = torch.from_numpy(queries[rows]).to(device) @ passages.T
            own = here[(here[:, 0] >= first) & (here[:, 0] < first + at_once)] - [first, 0]
            products[own[:, 0], own[:, 1]] = -torch.inf
            for column in range(limits.shape[1]):
                counts[rows, column] += _count(
                    products, limits[rows, column], errors[rows], queries[rows], block
                )
        start += len(block)
    return counts


def _count(products: Any, limits: Any, errors: Any, queries: Vectors, block: Vectors) -> Positions:
    """Count the products above each row's limit; look again at those within the error of it."""
    import torch

    errors = errors + np.abs(limits) * 2.0**-23  # as the limit is rounded too
    low, high = (
        torch.from_numpy(each.astype(np.float32)).to(products.device)[:, None]
        for each in (limits - errors, limits + errors)
    )
    above = products > high
    counts = above.sum(dim=1).cpu().numpy()
    close = ((products >= low) & ~above).nonzero().cpu().numpy()
    at_once = max(1, _PRODUCTS_AT_ONCE // queries.shape[1])
    for start in range(0, len(close), at_once):
        rows, columns = close[start : start + at_once].T
        exact = np.einsum(
            "pd,pd->p", queries[rows].astype(np.float64), block[columns].astype(np.float64)
        )
        counts += np.bincount(rows[exact > limits[rows]], minlength=len(counts))
    return counts


def vectors_at(index: Index, positions: Positions) -> Vectors:
    """Read the vectors at some positions of the index, as float32; (positions, dimensions)."""
    vectors = np.empty((len(positions), index.dimensions), np.float32)
    start = 0
    for each in index.shards:
        shard = np.load(each, mmap_mode="r") if not isinstance(each, np.ndarray) else each
        rows = np.flatnonzero((positions >= start) & (positions < start + len(shard)))
        vectors[rows] = shard[positions[rows] - start]
        start += len(shard)
    return vectors
