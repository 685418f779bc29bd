"""Matrix products of passages and queries, tile by tile, and how far they are from the true ones."""

import math
import time
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from expandr_core.encoders.encode import Vectors
from expandr_core.retrieval.index import Index

if TYPE_CHECKING:
    from torch import Tensor

Errors = NDArray[np.float64]
Proposer = Literal["bfloat16", "float32", "faiss"]  # torch in a precision, or faiss in float32
_PRECISIONS: tuple[Proposer, ...] = ("float32", "bfloat16")
# passages and queries of a tile: small enough for a processor's cache, large enough for a GPU
_TILE = {"cpu": (4096, 1024), "cuda": (16384, 8192)}
_FEWEST_SHARED = 64  # queries of a core
_BLOCK = 4  # tiles of passages that are read at once
UNDERFLOW = 2.0**-125  # twice the least normal number: smaller ones may count as 0


def tile_of(device: str) -> tuple[int, int]:
    """Return how many passages and queries are multiplied at once on a device."""
    return _TILE[device.partition(":")[0]]


def passages_at_once(index: Index, memory_gb: float) -> int:
    """Return the passages of a block: enough for a few tiles, within an eighth of the memory."""
    fitting = int(memory_gb * 1e9 / 8 / (16 * index.dimensions))
    return max(1, min(fitting, _BLOCK * tile_of(index.devices[0])[0]))


def shares_of(queries: int, device: str) -> list[slice]:
    """Cut queries so that each core of a CPU searches for some of them; a GPU does for all."""
    import torch

    cores = torch.get_num_threads() if device == "cpu" else 1
    size = max(_FEWEST_SHARED, math.ceil(queries / cores))
    return [slice(start, start + size) for start in range(0, queries, size)]


def tiles(passages: "Tensor", queries: "Tensor") -> Iterator[tuple[slice, slice, "Tensor"]]:
    """Multiply (passages, dimensions) with (queries, dimensions).

    Yields:
        Rows of the passages, rows of the queries, and their products, which the next tile overwrites;
        (passages of the tile, queries of the tile).
    """

    height, width = tile_of(str(queries.device))
    memory = queries.new_empty(min(height, len(passages)) * min(width, len(queries)))
    for top in range(0, len(passages), height):
        rows = slice(top, min(top + height, len(passages)))
        for left in range(0, len(queries), width):
            columns = slice(left, min(left + width, len(queries)))
            shape = rows.stop - rows.start, columns.stop - columns.start
            products = memory[: shape[0] * shape[1]].view(shape)
            _multiply(passages[rows], queries[columns], products)
            yield rows, columns, products


def _multiply(passages: "Tensor", queries: "Tensor", products: "Tensor") -> None:
    """Multiply a tile; float32 on a CPU by oneDNN, since MKL is half as fast if it is not Intel's."""
    import torch

    if products.dtype == torch.float32 and has_onednn(products.device.type):
        linear = torch.ops.mkldnn._linear_pointwise
        products.copy_(linear(passages, queries, None, "none", [], ""))
        return
    torch.mm(passages, queries.T, out=products)


def has_onednn(device: str) -> bool:
    """Tell whether torch multiplies by oneDNN on a device."""
    import torch

    return device == "cpu" and torch.backends.mkldnn.is_available()


def summation_error(dimensions: int) -> float:
    """Bound the error of an inner product in single precision, relative to the lengths' product.

    Twice the bound for a sum in any order, and four roundings more.
    """
    return (dimensions + 4) * 2.0**-23


def lengths_of(queries: Vectors) -> Errors:
    """Return the lengths of vectors, in double precision."""
    return np.sqrt(np.einsum("qd,qd->q", queries, queries, dtype=np.float64))


@cache
def quickest_proposer(device: str) -> Proposer:
    """Return what finds the largest products fastest on a device.

    On a GPU this is bfloat16 where it is native, else faiss if it was built for GPUs. On a CPU it is the
    faster of torch's two precisions, as measured once; without oneDNN it is faiss.
    """
    import torch

    if device.startswith("cuda"):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16"
        import faiss

        gpus: Any = faiss
        return "faiss" if gpus.get_num_gpus() else "float32"
    if not has_onednn(device):
        return "faiss"
    seconds = {precision: _seconds_of_product(precision) for precision in _PRECISIONS}
    return min(_PRECISIONS, key=lambda precision: seconds[precision])


def _seconds_of_product(precision: str) -> float:
    """Time some small products on a CPU."""
    import torch

    vectors = torch.ones((256, 256), dtype=getattr(torch, precision))
    products = torch.empty_like(vectors)
    _multiply(vectors, vectors, products)  # prepares itself
    start = time.perf_counter()
    for _ in range(4):
        _multiply(vectors, vectors, products)
    return time.perf_counter() - start
