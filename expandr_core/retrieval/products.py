"""Matrix products of passages and queries, tile by tile, and how far they are from the true ones."""

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from expandr_core.encoders.encode import Vectors

if TYPE_CHECKING:
    from torch import Tensor

Errors = NDArray[np.float64]
# passages and queries of a tile: small enough for a processor's cache, large enough for a GPU
_TILE = {"cpu": (4096, 1024), "cuda": (16384, 8192)}
UNDERFLOW = 2.0**-125  # twice the least normal number: smaller ones may count as 0


def tile_of(device: str) -> tuple[int, int]:
    """Return how many passages and queries are multiplied at once on a device."""
    return _TILE[device.partition(":")[0]]


def tiles(passages: "Tensor", queries: "Tensor") -> Iterator[tuple[slice, slice, "Tensor"]]:
    """Multiply (passages, dimensions) with (queries, dimensions).

    Yields:
        Rows of the passages, rows of the queries, and their products, which the next tile overwrites;
        (passages of the tile, queries of the tile).
    """
    import torch

    height, width = tile_of(str(queries.device))
    memory = queries.new_empty(min(height, len(passages)) * min(width, len(queries)))
    for top in range(0, len(passages), height):
        rows = slice(top, min(top + height, len(passages)))
        for left in range(0, len(queries), width):
            columns = slice(left, min(left + width, len(queries)))
            shape = rows.stop - rows.start, columns.stop - columns.start
            products = memory[: shape[0] * shape[1]].view(shape)
            torch.mm(passages[rows], queries[columns].T, out=products)
            yield rows, columns, products


def summation_error(dimensions: int) -> float:
    """Bound the error of an inner product in single precision, relative to the lengths' product.

    Twice the bound for a sum in any order, and four roundings more.
    """
    return (dimensions + 4) * 2.0**-23


def lengths_of(queries: Vectors) -> Errors:
    """Return the lengths of vectors, in double precision."""
    return np.sqrt(np.einsum("qd,qd->q", queries, queries, dtype=np.float64))


@cache
def quickest_precision(device: str) -> str:
    """Return "bfloat16" where it multiplies faster than "float32", as measured once, else "float32"."""
    import time

    import torch

    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float32"
    seconds = {}
    for precision in ("float32", "bfloat16"):
        vectors = torch.ones((256, 256), dtype=getattr(torch, precision))
        torch.mm(vectors, vectors.T)  # prepares itself
        start = time.perf_counter()
        for _ in range(4):
            torch.mm(vectors, vectors.T)
        seconds[precision] = time.perf_counter() - start
    return min(seconds, key=lambda precision: seconds[precision])
