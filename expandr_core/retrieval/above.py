"""Which products of a tile are above the limits of their queries."""

import math
from typing import TYPE_CHECKING

import numpy as np

from expandr_core.retrieval.index import sampled
from expandr_core.retrieval.products import UNDERFLOW, multiplied, summation_error
from expandr_core.retrieval.rounding import TOGETHER, Quantised

if TYPE_CHECKING:
    from torch import Tensor

_MOST_GROUPS = 0.5  # of a tile: where more can be above, all are multiplied again
_MOST_PAIRS = 0.2  # likewise
_SLACK = 2.0**-19  # of the product of lengths: for all roundings of what integers must reach


def above(products: "Tensor", limits: "Tensor", most: int) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Find the products above their query's limit; of each query at most so many, the largest.

    Args:
        products: (passages, queries)
        limits: (queries,)
        most: pairs per query.

    Returns:
        The pairs' queries, in order, their passages, and their products.
    """
    import torch

    if products.dtype == torch.bfloat16 and limits.amin() >= 0:  # their bits are ordered alike
        bits = products.view(torch.int16), limits.view(torch.int16)
        queries, passages, found = above(*bits, most)
        return queries, passages, found.view(torch.bfloat16)

    # look at the largest of some passages first, as most are below
    groups = products.view(-1, math.gcd(TOGETHER, len(products)), len(limits))
    queries, group = _places((groups.amax(1) > limits).T.contiguous())
    if len(group) < groups.shape[0] * len(limits):
        found = groups[group, :, queries]
        which, place = _places(found > limits[queries][:, None])
        queries = queries[which]
        if len(queries) == 0 or int(torch.bincount(queries).max()) <= most:
            return queries, group[which] * groups.shape[1] + place, found[which, place]
    best, passages = products.T.contiguous().topk(min(most, len(products)), dim=1)
    queries, place = _places(best > limits[:, None])
    return queries, passages[queries, place], best[queries, place]


def above_again(
    passages: Quantised, queries: Quantised, products: "Tensor", limits: "Tensor", most: int
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Multiply pairs that can be above their query's limit again, in single precision.

    Args:
        passages: of the tile.
        queries: of the tile.
        products: (passages, queries) of their integers.
        limits: see `above`.
        most: see `above`.

    Returns:
        See `above`.
    """
    import torch

    pairs = _possible(passages, queries, products, limits)
    if pairs:
        rows, columns = pairs
        ends = torch.bincount(rows, minlength=len(limits)).cumsum(0)
        ends = torch.nn.functional.pad(ends, (1, 0))
        found = sampled(queries.given, passages.given, ends, columns)
        kept = (found > limits.index_select(0, rows)).nonzero()[:, 0]
        rows, columns, found = (each.index_select(0, kept) for each in (rows, columns, found))
        if len(rows) == 0 or int(torch.bincount(rows).max()) <= most:
            return rows, columns, found
    return above(multiplied(passages.given, queries.given), limits, most)


def _possible(
    passages: Quantised, queries: Quantised, products: "Tensor", limits: "Tensor"
) -> tuple["Tensor", "Tensor"] | None:
    """Return pairs that can be above a limit, though vectors were rounded; None if they are many."""
    import torch

    # With p = p' + e and q = q' + f, where p' and q' are rounded, pq is at most
    # p'q' + |e| (|q| + |f|) + |p| |f|. So a pair can be above its limit only if p'q' is at least the
    # limit less that. It is computed once for a group of passages, from their greatest lengths, and
    # divided by the scales, to compare integers with it.
    together = math.gcd(TOGETHER, len(products))
    groups = products.T.reshape(len(limits), -1, together)
    scales, lost, lengths = (each.view(-1, together).amax(1) for each in passages[2:])
    own_scales, own_lost, own_lengths = queries[2:]
    dimensions = passages.given.shape[1]
    inexact = summation_error(dimensions) + _SLACK
    least = limits[:, None] - UNDERFLOW * dimensions * (1 + own_lengths + lengths.amax())
    least = least.addcmul(lost, own_lengths + own_lost, value=-1)
    least.addcmul_(lengths, own_lost + own_lengths * inexact, value=-1)
    least.div_(scales * own_scales)
    least = torch.where(least > 0, least, -torch.inf)  # a negative one is more by a smaller scale
    rows, group = _places(groups.amax(2) >= least)
    if len(rows) > _MOST_GROUPS * least.numel():
        return None
    chosen = rows * groups.shape[1] + group
    found, least = (
        each.index_select(0, chosen) for each in (groups.flatten(0, 1), least.flatten())
    )
    which, place = _places(found >= least[:, None])
    if len(which) > _MOST_PAIRS * products.numel():
        return None
    return rows[which], group[which] * together + place


def _places(mask: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return the rows and columns of what is true; on a CPU numpy finds them quicker than torch."""
    import torch

    if mask.device.type == "cpu":
        places = np.divmod(np.flatnonzero(mask.numpy()), mask.shape[1])
        return torch.from_numpy(places[0]), torch.from_numpy(places[1])
    rows, columns = mask.nonzero(as_tuple=True)
    return rows, columns
