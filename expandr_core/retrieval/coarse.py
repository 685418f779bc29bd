"""How coarse proposals may be, and how few, to settle a search: an estimate from a sample."""

import math
from typing import TYPE_CHECKING, NamedTuple

from expandr_core.encoders.encode import Vectors
from expandr_core.retrieval.index import Index
from expandr_core.retrieval.products import Proposer
from expandr_core.retrieval.proposals import FEWEST_SAMPLED, ROUNDING, errors_of, sample_size
from expandr_core.retrieval.rounding import rounded

if TYPE_CHECKING:
    from torch import Tensor

_MARGIN = 64  # extra proposals, and as many again as wanted
_TIMES = {"int8": 4, "bfloat16": 2}  # as many, if products are so coarse and so much quicker
_PASSAGES = 16  # of so many sampled ones int8 proposes at most one: settling more takes too long
_QUERIES_SAMPLED = 256
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

        precision = "float32" if proposer == "faiss" else proposer
        device = self.passages.devices[:1]
        [block] = self.passages.blocks(self.products.shape[1], device, precision)
        asked = rounded(torch.from_numpy(self.queries), precision)
        errors = errors_of(self.queries, asked, float(block.lengths.max()), block.rounding)
        rank = min(self.products.shape[1], math.ceil(k / self.stands_for))
        last = self.products.topk(rank, dim=1).values[:, -1]
        errors = torch.from_numpy(errors).to(last) + last.abs() * ROUNDING[precision]
        possible = (self.products >= (last - 2 * errors)[:, None]).sum(1).float()
        return math.ceil(float(possible.quantile(_SETTLED)) * self.stands_for) + _MARGIN


def most_proposals(k: int) -> int:
    """Return how many passages are proposed where no estimate says that fewer suffice."""
    return 2 * k + _MARGIN


def plan(queries: Vectors, index: Index, k: int, memory_gb: float, quickest: Proposer) -> Plan:
    """Choose what proposes passages: the quickest, or float32 where that settles too few queries.

    Args:
        queries: (queries, dimensions)
        index: the encoded corpus.
        k: passages that are searched for.
        memory_gb: a third of it is for the sample and its products.
        quickest: what multiplies fastest.
    """
    import torch

    most, sample = most_proposals(k), _sample(queries, index, memory_gb)
    if sample is None or not k:
        return Plan("float32" if quickest == "int8" else quickest, most)
    integers = quickest == "int8"
    # vectors in single precision may be too long to be scaled
    if quickest in _TIMES and (not integers or index.opened(0).dtype == torch.float16):
        needed = sample.needed(k, quickest)
        few = sample.products.shape[1] // _PASSAGES if integers else needed
        if needed <= min(few, _TIMES[quickest] * most):
            return Plan(quickest, needed)
    single = "float32" if quickest in _TIMES else quickest
    return Plan(single, min(most, sample.needed(k, single)))


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
