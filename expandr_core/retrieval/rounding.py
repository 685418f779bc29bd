"""Vectors in low precision, and how far they are from what they stand for."""

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["float32", "bfloat16"]
ZERO = 128  # what stands for 0 in the integers of passages
_LARGEST = 127
_LEAST_SCALE = 2.0**-63  # so that what is divided by it is a normal number
_LOST_OF_LENGTHS = 2.0**-63  # of a component, as its square underflows in single precision
_PACKED = 64  # queries that oneDNN multiplies together
UNIT = 2.0**-15  # of cosines; half of one is rounded to 0


class QuantisedPassages(NamedTuple):
    """Passages, and the same in eight bits.

    Attributes:
        given: (passages, dimensions) in single precision.
        integers: (passages, dimensions), unsigned; ZERO stands for 0.
        scale: what the integers are to be multiplied with.
        lost: the most that rounding took from any, as a length, or more where squares underflow.
        longest: the greatest length, likewise.
    """

    given: "Tensor"
    integers: "Tensor"
    scale: float
    lost: float
    longest: float


class QuantisedQueries(NamedTuple):
    """Queries, and the same in eight bits.

    Attributes:
        given: (queries, dimensions) in single precision.
        packed: integers in oneDNN's order, with zeros up to a multiple of 64 queries.
        scales: (queries,), which the integers are to be multiplied with.
        lost: (queries,) length of what rounding took, or more where squares underflow.
        lengths: (queries,) of those given, likewise.
    """

    given: "Tensor"
    packed: "Tensor"
    scales: "Tensor"
    lost: "Tensor"
    lengths: "Tensor"


def quantised_passages(vectors: "Tensor") -> QuantisedPassages:
    """Round vectors of single precision to multiples of the 127th part of their largest component.

    This is symmetric quantisation, per tensor. Products are integers, so that their sums are exact in
    any order. Those of passages are unsigned, as processors multiply unsigned integers with signed ones.

    Args:
        vectors: (passages, dimensions)
    """
    import torch

    scale = _scale_of(torch.maximum(vectors.amax(), -vectors.amin())).item()
    rounded = (vectors / scale).round_()
    integers = rounded.add_(ZERO).to(torch.uint8)
    lost = lengths_or_more(rounded.sub_(ZERO).mul_(-scale).add_(vectors)).amax().item()
    return QuantisedPassages(vectors, integers, scale, lost, lengths_or_more(vectors).amax().item())


def quantised_queries(vectors: "Tensor") -> QuantisedQueries:
    """Round likewise, but each to multiples of the 127th part of its own largest component.

    Args:
        vectors: (queries, dimensions)
    """
    import torch

    scales = _scale_of(vectors.abs().amax(1))
    rounded = (vectors / scales[:, None]).round_()
    lost = lengths_or_more(vectors - rounded * scales[:, None])
    integers = torch.nn.functional.pad(rounded.to(torch.int8), (0, 0, 0, -len(vectors) % _PACKED))
    packed = torch.ops.onednn.qlinear_prepack(integers, None)
    return QuantisedQueries(vectors, packed, scales, lost, lengths_or_more(vectors))


def above_zero(
    passages: QuantisedPassages, queries: QuantisedQueries, offsets: "Tensor"
) -> "Tensor":
    """Return by how many UNITs the cosine of integers and an offset of the query add up to more than 0.

    The cosine is their product, divided by both lengths. oneDNN adds and rounds while it multiplies.

    Args:
        passages: of a tile.
        queries: of a tile.
        offsets: (queries,)

    Returns:
        From 0 to 255; (passages, queries and zeros up to a multiple of 64).
    """
    import torch

    missing = 0, -len(offsets) % _PACKED
    offsets = torch.nn.functional.pad(offsets, missing, value=-1.0)
    scales = torch.nn.functional.pad(queries.scales / queries.lengths, missing)
    scale, zeros = passages.scale / passages.longest, torch.zeros(len(offsets), dtype=torch.int32)
    sides = passages.integers, scale, ZERO, queries.packed, scales, zeros
    multiply = torch.ops.onednn.qlinear_pointwise
    return multiply(*sides, offsets, UNIT, 0, torch.uint8, "none", [], "")


def _scale_of(largest: "Tensor") -> "Tensor":
    return (largest / _LARGEST).clamp(min=_LEAST_SCALE)


def lengths_or_more(vectors: "Tensor") -> "Tensor":
    """Return the lengths of vectors in single precision, or more where squares underflow; (vectors,)."""
    import torch

    hidden = _LOST_OF_LENGTHS * math.sqrt(vectors.shape[1])
    return torch.linalg.vector_norm(vectors, dim=1).add_(hidden)
