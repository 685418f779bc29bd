"""Propose passages that may be the nearest: those of largest products in low precision, or faiss's.

Products in int8 tell only which pairs are worth a product in float32.
The corpus is read once, and the best so far of all queries is kept. A product that is not above a
query's worst proposal so far is skipped by a comparison; the others are collected until there are an
eighth more than wanted, and only then sorted out. A sample of the corpus tells where to begin, so that
few are collected in vain. Several devices hold a share of the corpus each.
"""

import math
from collections.abc import Iterator
from itertools import chain, cycle, repeat
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from expandr_core.encoders.encode import Vectors
from expandr_core.retrieval.above import above, above_again
from expandr_core.retrieval.by_faiss import MOST_ON_GPU, by_faiss
from expandr_core.retrieval.index import Block, Index, Positions, expect_sparse, require_finite
from expandr_core.retrieval.products import (
    TILE_OF_INTEGERS,
    UNDERFLOW,
    Errors,
    Proposer,
    lengths_of,
    passages_at_once,
    summation_error,
    tiles,
)
from expandr_core.retrieval.rounding import (
    Precision,
    QuantisedPassages,
    quantised_passages,
    quantised_queries,
)
from expandr_core.runtime.cores import shares_of, sharing_cores

if TYPE_CHECKING:
    from torch import Tensor

_SORTED_AT_ONCE = 1 << 21  # proposals
_ENOUGH = 9 / 8  # times as many as wanted raise the limit
_SAMPLED = 64  # of so many passages one
FEWEST_SAMPLED = 1024  # passages; so few are searched at once
_BFLOAT16 = 2.0**-8  # of a product, relative to its size


class Proposals(NamedTuple):
    """The passages of largest products with each query.

    Attributes:
        products: (queries, proposals), descending; no other passage has a larger one.
        positions: (queries, proposals) in the index.
        errors: (queries,) by how much a sum of products can differ from the inner product.
        rounding: by how much its rounding can change it, relative to its size.
    """

    products: Vectors
    positions: Positions
    errors: Errors
    rounding: float

    def at_most(self) -> Errors:
        """Return the largest inner products that the proposals can have; (queries, proposals)."""
        return self.products + np.abs(self.products) * self.rounding + self.errors[:, None]

    def at_least(self, rank: int) -> Errors:
        """Return the least inner product of each query's proposal of this rank; (queries,)."""
        products = self.products[:, rank - 1]
        return products - np.abs(products) * self.rounding - self.errors


def propose(
    queries: Vectors, index: Index, wanted: int, memory_gb: float, proposer: Proposer
) -> Proposals:
    """Propose passages for each query, in one pass over the corpus.

    Args:
        queries: (queries, dimensions)
        index: the encoded corpus.
        wanted: proposals per query; at most as many as there are passages.
        memory_gb: an eighth of it is for vectors of the corpus.
        proposer: what multiplies, and in which precision.

    Raises:
        DataError: if a vector is not finite, as those of a diverged retriever.
    """
    limits = _limits(queries, index, wanted, memory_gb, proposer)
    found = _proposed(queries, index, wanted, memory_gb, proposer, limits)
    few = np.flatnonzero(np.isneginf(found.products[:, -1]))  # too few are above the limit
    if len(few):
        none = np.full(len(few), -np.inf, np.float32)
        again = _proposed(queries[few], index, wanted, memory_gb, proposer, none)
        found.products[few], found.positions[few] = again.products, again.positions
    return found


def _limits(
    queries: Vectors, index: Index, wanted: int, memory_gb: float, proposer: Proposer
) -> Vectors:
    """Return products that about as many passages as wanted are above, or a few more; (queries,).

    Of the proposals of a sample, the limit is so far behind the expected rank that it would be five
    standard deviations off if enough passages were not above it, were they drawn one by one.
    """
    count = sample_size(index, memory_gb)
    expected = wanted * count / max(1, len(index.passage_ids))
    rank = math.ceil(expected + 5 * math.sqrt(expected)) + 4
    if count < max(FEWEST_SAMPLED, 4 * rank):
        return np.full(len(queries), -np.inf, np.float32)
    return propose(queries, index.sample(count), rank, memory_gb, proposer).products[:, -1]


def sample_size(index: Index, memory_gb: float) -> int:
    """Return the passages of a sample, which takes at most an eighth of the memory."""
    fitting = int(memory_gb * 1e9 / 8 / (4 * index.dimensions))
    return min(len(index.passage_ids) // _SAMPLED, fitting)


def _proposed(
    queries: Vectors,
    index: Index,
    wanted: int,
    memory_gb: float,
    proposer: Proposer,
    limits: Vectors,
) -> Proposals:
    """Propose passages whose products are above each query's limit; -inf stands for missing ones."""
    import torch

    precision = precision_of(proposer)
    expect_sparse()
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums in float32
    asked = torch.from_numpy(queries).to(getattr(torch, precision))
    shares = shares_of(len(queries), index.devices[0])
    pools = [
        [_Pool(asked[own].to(at), wanted, proposer, limits[own]) for own in shares]
        for at in index.devices
    ]
    longest = furthest = 0.0
    with sharing_cores(len(pools) * len(shares)) as threads:
        waiting: list[Iterator[None]] = [iter(()) for _ in pools]
        size = passages_at_once(index, memory_gb)
        blocks = index.blocks(size, index.devices * 2, precision, threads)
        for block, (of, own) in zip(blocks, cycle(enumerate(pools))):
            longest = max(longest, float(block.lengths.max()))
            furthest = max(furthest, block.rounding)
            parts = block.vectors.split(TILE_OF_INTEGERS[0]) if proposer == "int8" else ()
            eights = list(threads.map(quantised_passages, parts))
            list(waiting[of])  # while a thread was busy, others made this block ready
            waiting[of] = threads.map(_Pool.add, own, repeat(block), repeat(eights))
        list(chain(*waiting))
        bests = [threads.map(_Pool.best, own) for own in pools]
    products, positions = _joined(bests, wanted)
    own = lengths_of(queries)
    require_finite(np.where(own * longest < 2.0**127, own, np.inf))
    errors = errors_of(queries, asked, longest, furthest)
    return Proposals(products, positions, errors, rounding_of(proposer))


def precision_of(proposer: Proposer) -> Precision:
    """Return the precision of the products that proposals are chosen by."""
    return "bfloat16" if proposer == "bfloat16" else "float32"


def rounding_of(proposer: Proposer) -> float:
    """Return by how much its own rounding can change a product, relative to its size."""
    return _BFLOAT16 if proposer == "bfloat16" else 0.0


def errors_of(queries: Vectors, asked: "Tensor", longest: float, furthest: float) -> Errors:
    """Bound what rounding and sums can change of any product; (queries,).

    Args:
        queries: (queries, dimensions)
        asked: the same, rounded.
        longest: length of the longest passage.
        furthest: length of the greatest difference between a passage and what it was rounded to.
    """
    dimensions, own = queries.shape[1], lengths_of(queries)
    lost = lengths_of(queries - asked.float().numpy())
    errors = lost * longest + (own + lost) * furthest
    errors += (own + lost) * (longest + furthest) * summation_error(dimensions)
    return errors + UNDERFLOW * dimensions * (1 + own + longest)


class _Pool:
    """The best passages of each of some queries, among those that one device has seen."""

    def __init__(self, queries: "Tensor", wanted: int, proposer: Proposer, limits: Vectors):
        """Start without any.

        Args:
            queries: (queries, dimensions), on the device and in the precision of the products.
            wanted: passages per query.
            proposer: what multiplies.
            limits: (queries,) passages whose products are not above them are left out.
        """
        import torch

        self._queries, self._wanted = queries, wanted
        parts = queries.split(TILE_OF_INTEGERS[1]) if proposer == "int8" else ()
        self._eights = [quantised_queries(own) for own in parts]
        deep = queries.device.type == "cuda" and wanted > MOST_ON_GPU
        self._by_faiss = proposer == "faiss" and not deep
        shape = len(queries), 2 * wanted
        self._products = queries.new_full(shape, -np.inf)
        self._positions = queries.new_zeros(shape, dtype=torch.int32)
        self._filled = queries.new_zeros(len(queries), dtype=torch.int64)
        self._limits = torch.from_numpy(limits).to(self._products)  # raised as proposals are found

    def add(self, block: Block, eights: list[QuantisedPassages]) -> None:
        """Collect the passages of a block, or of the same in eight bits, that are above the limits."""
        if self._eights:
            self._add_integers(eights, block.start)
        elif self._by_faiss:
            found, passages = by_faiss(self._queries, block.vectors, self._wanted)
            queries, place = (found > self._limits[:, None]).nonzero(as_tuple=True)
            self._collect(queries, passages[queries, place] + block.start, found[queries, place])
        else:
            for rows, columns, products in tiles(block.vectors, self._queries):
                found = above(products, self._limits[columns], self._wanted)
                self._collect_of(found, columns.start, block.start + rows.start)

    def _add_integers(self, eights: list[QuantisedPassages], start: int) -> None:
        for tile in eights:
            first = 0
            for asked in self._eights:
                limits = self._limits[first : first + len(asked.given)]
                self._collect_of(above_again(tile, asked, limits, self._wanted), first, start)
                first += len(asked.given)
            start += len(tile.given)

    def _collect_of(
        self, found: tuple["Tensor", "Tensor", "Tensor"], query: int, passage: int
    ) -> None:
        """Collect pairs of a tile, whose first query and passage are given."""
        queries, passages, products = found
        if len(queries):
            self._collect(queries + query, passages + passage, products)

    def _collect(self, queries: "Tensor", positions: "Tensor", products: "Tensor") -> None:
        """Note pairs, sorted by query; at most as many of each as wanted."""
        import torch

        distinct, counts = torch.unique_consecutive(queries, return_counts=True)
        self._sort_out(distinct[self._filled[distinct] + counts > self._products.shape[1]])
        firsts = (self._filled[distinct] - counts.cumsum(0) + counts).repeat_interleave(counts)
        columns = firsts + torch.arange(len(queries), device=queries.device)
        self._products[queries, columns] = products
        self._positions[queries, columns] = positions.int()
        self._filled[distinct] += counts
        filled, unlimited = self._filled[distinct], self._limits[distinct].isneginf()
        enough = filled >= torch.where(unlimited, self._wanted, _ENOUGH * self._wanted)
        self._sort_out(distinct[enough])

    def _sort_out(self, queries: "Tensor") -> None:
        """Keep only the best passages of some queries, as many as wanted; raise their limits."""
        import torch

        wanted = self._wanted
        for rows in queries.split(_SORTED_AT_ONCE // wanted + 1):
            products, columns = self._products[rows].topk(wanted, dim=1, sorted=False)
            positions = self._positions[rows].gather(1, columns)
            self._products[rows, wanted:] = -np.inf
            self._products[rows, :wanted] = products
            self._positions[rows, :wanted] = positions
            self._filled[rows] = self._filled[rows].clamp(max=wanted)
            self._limits[rows] = torch.maximum(self._limits[rows], products.amin(1))

    def best(self) -> tuple["Tensor", "Tensor"]:
        """Return the largest products (-inf where there are too few), and positions."""
        import torch

        self._sort_out(torch.arange(len(self._queries), device=self._queries.device))
        kept = slice(None), slice(self._wanted)
        return self._products[kept].cpu(), self._positions[kept].cpu()


def _joined(
    bests: "list[Iterator[tuple[Tensor, Tensor]]]", wanted: int
) -> tuple[Vectors, Positions]:
    """Join what each device proposes to shares of the queries; products are descending."""
    import torch

    of_devices = [map(torch.cat, zip(*own, strict=True)) for own in bests]
    products, positions = (torch.cat(each, dim=1) for each in zip(*of_devices, strict=True))
    products, columns = products.float().topk(wanted, dim=1)
    return products.numpy(), positions.gather(1, columns).numpy()
