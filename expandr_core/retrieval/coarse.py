"""Whether proposals in eight bits, which are quick but coarse, are worth a try."""

import math

from expandr_core.encoders.encode import Vectors
from expandr_core.retrieval.index import Index
from expandr_core.retrieval.proposals import FEWEST_SAMPLED, errors_of, sample_size
from expandr_core.retrieval.rounding import rounded

_QUERIES_SAMPLED = 256
_FEWEST_QUERIES = 1024  # fewer are searched in single precision at once
_TIMES = 16  # of so many sampled passages at most one is proposed: settling more takes too long
_SETTLED = 0.9  # of the queries of a sample


def int8_suffices(queries: Vectors, index: Index, k: int, wanted: int, memory_gb: float) -> bool:
    """Tell whether so many proposals in int8 would settle nearly all queries, and save time.

    They do where no other passage can be among the nearest: none whose product is less than twice the
    error of one below that of the k-th passage. Some queries are compared with a sample.

    Args:
        queries: (queries, dimensions)
        index: the encoded corpus.
        k: passages that are searched for.
        wanted: proposals per query.
        memory_gb: a third of it is for the sample and its products.
    """
    import torch

    count, passages = sample_size(index, memory_gb), len(index.passage_ids)
    few = len(queries) < _FEWEST_QUERIES or count < max(FEWEST_SAMPLED, _TIMES * wanted)
    if (
        not k or few or index.opened(0).dtype != torch.float16
    ):  # others may be too long to be scaled
        return False
    sample = index.sample(count)
    [block], [integers] = (sample.blocks(passages, ["cpu"], each) for each in ("float32", "int8"))
    some = min(_QUERIES_SAMPLED, index.dimensions)  # as many products as components of the sample
    asked = queries[:: len(queries) // some]
    products = torch.from_numpy(asked) @ block.vectors.T
    longest = float(integers.lengths.max())
    errors = errors_of(asked, rounded(torch.from_numpy(asked), "int8"), longest, integers.rounding)
    rank = math.ceil(k * len(block.vectors) / passages)
    least = products.topk(rank, dim=1).values[:, -1] - 2 * torch.from_numpy(errors).float()
    possible = (products >= least[:, None]).sum(1) * passages / len(block.vectors)
    return bool((possible <= wanted).float().mean() >= _SETTLED)
