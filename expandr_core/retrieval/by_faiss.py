"""Search one block of the corpus by faiss."""

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MOST_ON_GPU = 2048  # passages per query that faiss can return from a GPU


def by_faiss(queries: "Tensor", passages: "Tensor", k: int) -> tuple["Tensor", "Tensor"]:
    """Let faiss find the k passages of largest products: these, descending, and the passages' rows.

    Args:
        queries: (queries, dimensions), float32.
        passages: (passages, dimensions), float32, on the same device.
        k: passages per query; all of them if there are fewer.
    """
    import faiss
    import torch

    gpu: Any = faiss
    k, metric = min(k, len(passages)), faiss.METRIC_INNER_PRODUCT
    if queries.device.type == "cpu":
        products, rows = faiss.knn(queries.numpy(), passages.numpy(), k, metric)
        return torch.from_numpy(products), torch.from_numpy(rows)
    from faiss.contrib import torch_utils  # noqa: F401 - lets faiss take tensors

    index = queries.device.index
    with torch.cuda.device(index):
        return gpu.knn_gpu(_gpu_memory(index), queries, passages, k, metric=metric, device=index)


@cache
def _gpu_memory(index: int) -> Any:
    """Return faiss's memory on a GPU, which all blocks share."""
    import faiss

    gpus: Any = faiss
    return gpus.StandardGpuResources()
