"""Vectors in low precision, and how far they are from what they stand for."""

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["float32", "bfloat16"]
TOGETHER = 16  # passages that are sampled together, share a scale, and are compared together
_LARGEST = 127
_LEAST_SCALE = 2.0**-63  # products of two are normal numbers
_LOST_OF_LENGTHS = 2.0**-63  # of a component, as its square underflows in single precision


class Quantised(NamedTuple):
    """Vectors, and the same in eight bits.

    Attributes:
        given: (vectors, dimensions) in single precision.
        integers: (vectors, dimensions)
        scales: (vectors, 1), which the integers are to be multiplied with.
        lost: (vectors, 1) length of what rounding took, or more where squares underflow.
        lengths: (vectors, 1) of those given, likewise.
    """

    given: "Tensor"
    integers: "Tensor"
    scales: "Tensor"
    lost: "Tensor"
    lengths: "Tensor"

    def of(self, rows: slice) -> "Quantised":
        """Return some of the vectors."""
        return Quantised(*(each[rows] for each in self))


def quantised(vectors: "Tensor", together: int = 1) -> Quantised:
    """Round vectors of single precision to multiples of the 127th part of their largest component.

    This is symmetric quantisation. Products are integers, so that their sums are exact in any order.

    Args:
        vectors: (vectors, dimensions)
        together: so many vectors, side by side, share a scale.
    """
    import torch

    largest = torch.nn.functional.pad(vectors.abs().amax(1), (0, -len(vectors) % together))
    shared = largest.view(-1, together).amax(1).repeat_interleave(together)[: len(vectors), None]
    scales = (shared / _LARGEST).clamp_(min=_LEAST_SCALE)
    integers = (vectors / scales).round_().to(torch.int8)
    lost = lengths_or_more(vectors - integers * scales)
    return Quantised(vectors, integers, scales, lost[:, None], lengths_or_more(vectors)[:, None])


def lengths_or_more(vectors: "Tensor") -> "Tensor":
    """Return the lengths of vectors in single precision, or more where squares underflow; (vectors,)."""
    import torch

    hidden = _LOST_OF_LENGTHS * math.sqrt(vectors.shape[1])
    return torch.linalg.vector_norm(vectors, dim=1).add_(hidden)
