"""Which products of a tile are above the limits of their queries."""

import math
from typing import TYPE_CHECKING

import numpy as np

from expandr_core.retrieval.index import Positions, sampled
from expandr_core.retrieval.products import UNDERFLOW, multiplied, packed, summation_error
from expandr_core.retrieval.rounding import UNIT, QuantisedPassages, QuantisedQueries, above_zero

if TYPE_CHECKING:
    from torch import Tensor

_TOGETHER = 16  # passages whose products are compared together
_MOST_PAIRS = 0.2  # of a tile: where more can be above, all are multiplied again
_OUT_OF_REACH = 4.0  # more than a cosine of what was rounded, up to 64,516 dimensions


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
    groups = products.view(-1, math.gcd(_TOGETHER, len(products)), len(limits))
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
    passages: QuantisedPassages, queries: QuantisedQueries, limits: "Tensor", most: int
) -> tuple["Tensor", "Tensor", "Tensor"]:
    """Multiply integers, and pairs that can be above their query's limit again, in single precision.

    Passages and queries are those of a tile. For the rest see `above`.
    """
    import torch

    pairs = _possible(passages, queries, limits)
    if pairs:
        rows, columns = map(torch.from_numpy, pairs)
        ends = torch.bincount(rows, minlength=len(limits)).cumsum(0)
        ends = torch.nn.functional.pad(ends, (1, 0))
        found = sampled(queries.given, passages.given, ends, columns)
        kept = (found > limits.index_select(0, rows)).nonzero()[:, 0]
        rows, columns, found = (each.index_select(0, kept) for each in (rows, columns, found))
        if len(rows) == 0 or int(torch.bincount(rows).max()) <= most:
            return rows, columns, found
    return above(multiplied(passages.given, packed(queries.given)), limits, most)


def _possible(
    passages: QuantisedPassages, queries: QuantisedQueries, limits: "Tensor"
) -> tuple[Positions, Positions] | None:
    """Return pairs that can be above a limit, though vectors were rounded; None if they are many.

    They are sorted by query.
    """
    # With p = p' + e and q = q' + f, where p' and q' are rounded, pq is at most
    # p'q' + |e| (|q| + |f|) + |p| |f|. So a pair can be above its limit only if p'q' is above the
    # limit less that. Both are divided by |p| |q|; cosines that are too far off are out of reach. A
    # UNIT more is for all roundings of what is compared.
    dimensions, lengths = passages.given.shape[1], passages.longest * queries.lengths
    margins = passages.lost * (queries.lengths + queries.lost) + passages.longest * queries.lost
    margins += lengths * summation_error(dimensions)
    margins += UNDERFLOW * dimensions * (1 + queries.lengths + passages.longest)
    offsets = ((margins - limits) / lengths).nan_to_num_(_OUT_OF_REACH)  # lengths may overflow
    offsets.clamp_(-_OUT_OF_REACH, _OUT_OF_REACH).add_(UNIT)
    found = above_zero(passages, queries, offsets).numpy()
    words = found.ravel().view(np.uint64)  # of eight pairs each, as most are 0
    some = np.flatnonzero(words != 0)
    near = words[some].view(np.uint8) != 0
    if np.count_nonzero(near) > _MOST_PAIRS * len(passages.given) * len(limits):
        return None
    places = np.flatnonzero(near)
    columns, rows = np.divmod(some[places // 8] * 8 + places % 8, found.shape[1])
    order = np.argsort(rows.astype(np.uint16), kind="stable")  # in the time of a few passes
    return rows[order], columns[order]


def _places(mask: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Return the rows and columns of what is true; on a CPU numpy finds them quicker than torch."""
    import torch

    if mask.device.type == "cpu":
        places = np.divmod(np.flatnonzero(mask.numpy()), mask.shape[1])
        return torch.from_numpy(places[0]), torch.from_numpy(places[1])
    rows, columns = mask.nonzero(as_tuple=True)
    return rows, columns
