"""How coarse proposals may be, and how few, to settle a search: an estimate from a sample."""

import math
from typing import TYPE_CHECKING, NamedTuple

from expandr_core.encoders.encode import Vectors
from expandr_core.retrieval.index import Index
from expandr_core.retrieval.products import Proposer, quickest_floats
from expandr_core.retrieval.proposals import (
    FEWEST_SAMPLED,
    errors_of,
    precision_of,
    rounding_of,
    sample_size,
)
from expandr_core.retrieval.rounding import quantised_passages, quantised_queries

if TYPE_CHECKING:
    from torch import Tensor

_MARGIN = 64  # extra proposals, and as many again as wanted
_TIMES = 2  # as many, if products are in bfloat16
_MULTIPLIED_AGAIN = 1 / 40  # of all pairs, at most, if products are in eight bits
_QUERIES_SAMPLED = 256
_PASSAGES_ROUNDED = 4096  # of a sample, to eight bits
_FEWEST_QUERIES = 1024  # fewer are searched without an estimate
_SETTLED = 0.9  # of the queries of a sample


class Plan(NamedTuple):
    """What proposes passages, and how many for each query."""

    proposer: Proposer
    proposals: int


class _Sample(NamedTuple):
    """Some passages, some queries, and their products.

    Attributes:
        passages: as an index.
        queries: (queries, dimensions)
        products: (queries, passages) in single precision.
        stands_for: passages of the corpus for each sampled one.
    """

    passages: Index
    queries: Vectors
    products: "Tensor"
    stands_for: float

    def needed(self, k: int, proposer: Proposer) -> int:
        """Estimate how many proposals settle nearly all queries.

        They do where no other passage can be among the nearest: none whose product is less than twice
        the error of one below that of the k-th.
        """
        import torch

        device, precision = self.passages.devices[:1], precision_of(proposer)
        [block] = self.passages.blocks(self.products.shape[1], device, precision)
        asked = torch.from_numpy(self.queries).to(getattr(torch, precision))
        errors = errors_of(self.queries, asked, float(block.lengths.max()), block.rounding)
        last = self._last(k)
        errors = torch.from_numpy(errors).to(last) + last.abs() * rounding_of(proposer)
        possible = (self.products >= (last - 2 * errors)[:, None]).sum(1).float()
        return math.ceil(float(possible.quantile(_SETTLED)) * self.stands_for) + _MARGIN

    def multiplied_again(self, k: int) -> float:
        """Estimate which share of all pairs can be among the nearest by their products in eight bits."""
        import torch

        few = slice(None, None, math.ceil(self.products.shape[1] / _PASSAGES_ROUNDED))
        passages = quantised_passages(self.passages.opened(0)[few].float())
        asked = quantised_queries(torch.from_numpy(self.queries))
        lost = asked.lost * passages.longest + (asked.lengths + asked.lost) * passages.lost
        products, last = self.products[:, few].cpu(), self._last(k).cpu()
        return float((products >= (last - lost)[:, None]).float().mean())

    def _last(self, k: int) -> "Tensor":
        """Return the product with the k-th nearest passage of the corpus, more or less; (queries,)."""
        rank = min(self.products.shape[1], math.ceil(k / self.stands_for))
        return self.products.topk(rank, dim=1).values[:, -1]


def most_proposals(k: int) -> int:
    """Return how many passages are proposed where no estimate says that fewer suffice."""
    return 2 * k + _MARGIN


def plan(queries: Vectors, index: Index, k: int, memory_gb: float, quickest: Proposer) -> Plan:
    """Choose what proposes passages: the quickest that does not leave too much to be multiplied again.

    Args:
        queries: (queries, dimensions)
        index: the encoded corpus.
        k: passages that are searched for.
        memory_gb: a third of it is for the sample and its products.
        quickest: what multiplies fastest.
    """
    most, sample = most_proposals(k), _sample(queries, index, memory_gb)
    floats = quickest_floats(index.devices[0]) if quickest == "int8" else quickest
    if sample is None or not k:
        return Plan(floats, most)
    if quickest == "int8" and sample.multiplied_again(most) <= _MULTIPLIED_AGAIN:
        return Plan("int8", min(most, sample.needed(k, "int8")))
    if floats == "bfloat16":
        needed = sample.needed(k, floats)
        if needed <= _TIMES * most:
            return Plan(floats, needed)
        floats = "float32"
    return Plan(floats, min(most, sample.needed(k, floats)))


def _sample(queries: Vectors, index: Index, memory_gb: float) -> _Sample | None:
    """Multiply a sample, if there are enough queries and passages for one."""
    import torch

    count = sample_size(index, memory_gb)
    if len(queries) < _FEWEST_QUERIES or count < FEWEST_SAMPLED:
        return None
    passages = index.sample(count)
    some = min(_QUERIES_SAMPLED, index.dimensions)  # as many products as components of the sample
    asked = queries[:: len(queries) // some]
    [block] = passages.blocks(len(passages.passage_ids), index.devices[:1])
    products = torch.from_numpy(asked).to(block.vectors) @ block.vectors.T
    return _Sample(passages, asked, products, len(index.passage_ids) / products.shape[1])
