"""Vectors in low precision, and how far they are from what they stand for."""

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["float32", "bfloat16", "int8"]
_LARGEST = 127
_LEAST_SCALE = 2.0**-120  # of a zero vector


class Rounded(NamedTuple):
    """Vectors in low precision.

    Attributes:
        vectors: (vectors, dimensions)
        scales: (vectors, 1), which they are to be multiplied with.
    """

    vectors: "Tensor"
    scales: "Tensor | float"

    def lost(self, vectors: "Tensor") -> "Tensor":
        """Return the length of what rounding took from vectors; (vectors,)."""
        import torch

        return torch.linalg.vector_norm(vectors - self.vectors.float() * self.scales, dim=1)


def rounded(vectors: "Tensor", precision: Precision) -> Rounded:
    """Round vectors of single precision; (vectors, dimensions).

    In eight bits each is multiples of the 127th part of its own largest component: symmetric
    quantisation by row. Products are integers then, so that their sums are exact in any order.
    """
    import torch

    if precision != "int8":
        return Rounded(vectors.to(getattr(torch, precision)), 1.0)
    scales = (vectors.abs().amax(1, keepdim=True) / _LARGEST).clamp_(min=_LEAST_SCALE)
    return Rounded((vectors / scales).round_().to(torch.int8), scales)
