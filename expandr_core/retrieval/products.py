"""Matrix products of passages and queries, tile by tile, and how far they are from the true ones."""

from collections.abc import Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from expandr_core.encoders.encode import Vectors
from expandr_core.retrieval.index import Index
from expandr_core.retrieval.rounding import (
    UNIT,
    above_zero,
    quantised_passages,
    quantised_queries,
)
from expandr_core.runtime.cores import least_seconds

if TYPE_CHECKING:
    from torch import Tensor

Errors = NDArray[np.float64]
Proposer = Literal["int8", "bfloat16", "float32", "faiss"]  # torch so, or faiss in float32
_PRECISIONS: tuple[Proposer, ...] = ("float32", "bfloat16")
# passages and queries of a tile: small enough for a processor's cache, large enough for a GPU
_TILE = {"cpu": (4096, 1024), "cuda": (16384, 8192)}
TILE_OF_INTEGERS = 2048, 4096  # of which few are looked at again
_BLOCK = 4  # tiles of passages that are read at once
UNDERFLOW = 2.0**-125  # twice the least normal number: smaller ones may count as 0


def tile_of(device: str) -> tuple[int, int]:
    """Return how many passages and queries are multiplied at once on a device."""
    return _TILE[device.partition(":")[0]]


def passages_at_once(index: Index, memory_gb: float) -> int:
    """Return the passages of a block: enough for a few tiles, within an eighth of the memory."""
    fitting = int(memory_gb * 1e9 / 8 / (16 * index.dimensions))
    return max(1, min(fitting, _BLOCK * tile_of(index.devices[0])[0]))


def tiles(passages: "Tensor", queries: "Tensor") -> Iterator[tuple[slice, slice, "Tensor"]]:
    """Multiply (passages, dimensions) with (queries, dimensions), of the same type.

    Yields:
        Rows of the passages, rows of the queries, and their products, which the next tile overwrites;
        (passages of the tile, queries of the tile).
    """
    height, width = tile_of(str(queries.device))
    memory = queries.new_empty(min(height, len(passages)) * min(width, len(queries)))
    parts = [packed(part) for part in queries.split(width)]
    for top in range(0, len(passages), height):
        tile = passages[top : top + height]
        for left, part in zip(range(0, len(queries), width), parts, strict=True):
            own = memory[: len(tile) * len(part)].view(len(tile), len(part))
            columns = slice(left, left + len(part))
            yield slice(top, top + len(tile)), columns, multiplied(tile, part, own)


def packed(queries: "Tensor") -> "Tensor":
    """Return queries in oneDNN's order if it is to multiply them, else as they are."""
    import torch

    if queries.dtype == torch.float32 and queries.device.type == "cpu" and _onednn_is_quicker():
        return torch.ops.mkldnn._reorder_linear_weight(queries)
    return queries


def multiplied(passages: "Tensor", queries: "Tensor", memory: "Tensor | None" = None) -> "Tensor":
    """Multiply a tile, in this memory or, by oneDNN, in some of its own; (passages, queries)."""
    import torch

    if queries.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(passages, queries, None, "none", [], "")
    return torch.mm(passages, queries.T, out=memory)


@cache
def _onednn_is_quicker() -> bool:
    """Tell whether oneDNN is quicker in float32 than MKL, which is made for Intel's processors."""
    import torch

    if not has_onednn("cpu"):
        return False
    ones = torch.ones((512, 512))
    sides = ones, torch.ops.mkldnn._reorder_linear_weight(ones)
    by_onednn, by_mkl = least_seconds(partial(multiplied, *sides), partial(multiplied, ones, ones))
    return by_onednn < by_mkl


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

    On a CPU this is int8 if that takes at most two thirds of the time of torch's floating-point numbers.
    """
    quickest = quickest_floats(device)
    return "int8" if has_onednn(device) and _integers_are_quicker(quickest) else quickest


@cache
def quickest_floats(device: str) -> Proposer:
    """Return what finds the largest products fastest in floating-point numbers.

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
    vectors = [torch.ones((256, 256), dtype=getattr(torch, name)) for name in _PRECISIONS]
    seconds = least_seconds(*(partial(multiplied, each, packed(each)) for each in vectors))
    return _PRECISIONS[int(np.argmin(seconds))]


def _integers_are_quicker(precision: Proposer) -> bool:
    """Tell whether products in int8 are exact on the CPU, and take at most two thirds of the time."""
    import torch

    # few first, in case that oneDNN has no product of integers that is made for this processor
    for size, factor in ((64, 0.1), (1024, 1.5)):
        vectors = torch.ones((size, size))
        sides = quantised_passages(vectors), quantised_queries(vectors), vectors[0]
        floats = vectors.to(getattr(torch, precision))
        multiply = partial(multiplied, floats, packed(floats))
        seconds = least_seconds(partial(above_zero, *sides), multiply)
        if factor * seconds[0] >= seconds[1]:
            return False
    return integers_are_exact()


def integers_are_exact() -> bool:
    """Tell whether sums of products in int8 are exact on the CPU; some add pairs in 16 bits."""
    import torch

    if not has_onednn("cpu"):
        return False
    ones = torch.ones((512, 512))
    passages, nearly = quantised_passages(ones), torch.full((512,), 99.75 * UNIT)
    return all(
        (above_zero(passages, quantised_queries(sign * ones), nearly - sign)[:, :512] == 100).all()
        for sign in (1, -1)
    )
