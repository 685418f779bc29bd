"""Operators that encode more quickly on a CPU than those torch chooses; without gradients.

- Linear layers go to oneDNN as they are. For float32 torch would choose MKL, which has half the
  speed on processors that are not Intel's; for bfloat16 it would first copy the bias for each row.
- Attention in bfloat16, where the processor has no AMX, is two products and a softmax, both by oneDNN.
  torch's own kernel cuts its products so small that they reach an eighth of the processor's speed.
"""

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_AT_ONCE = 3 << 19  # scores of queries and keys: 3 MB, which a cache holds
_MOST = 1 << 25  # of one text; more would take too much memory
_HIDDEN = -1e30


def keep_freed_memory() -> None:
    """Let Linux's allocator (glibc) keep up to 64 MB that are free for the next layer.

    It gives free memory back to the system beyond twice the largest block that was freed before, if that
    was at most 32 MB. Encoding would ask for the same memory again in every layer, page by page.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


class CPUOperators(TorchFunctionMode):
    """Replace what `nn.Linear` and attention call, and nothing else."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call our function instead of torch's."""
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def helps(precision: str) -> bool:
    """Tell whether this processor and this build of torch can use the operators for a precision."""
    if not torch.backends.mkldnn.is_available():
        return False
    if precision == "float32":
        return platform.machine() in ("x86_64", "AMD64")
    return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute a linear layer, by the operator that torch.compile uses too."""
    if input.dtype not in (torch.float32, torch.bfloat16):
        return F.linear(input, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def _attention(  # noqa: PLR0913 - torch's parameters
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute scaled dot-product attention in bfloat16; leave other types and rarer cases to torch.

    Args:
        query: (texts, heads, tokens, size)
        key: (texts, heads, tokens, size)
        value: (texts, heads, tokens, size)
        attn_mask: False where a query does not see a key; taken if all queries of a text see the same.
        dropout_p: not taken if above 0.
        is_causal: not taken.
        scale: of the scores; None for the root of 1 / size.
        enable_gqa: not taken.

    Returns:
        (texts, heads, tokens, size)
    """
    common = not (dropout_p or is_causal or enable_gqa) and _is_short_bfloat16(query, key)
    if common and (attn_mask is None or _is_same_for_all_queries(attn_mask)):
        query = query * (query.shape[3] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            query, key = _hide(query, key, attn_mask[:, :, 0])
        return _attend(query, key, value)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _is_short_bfloat16(query: Tensor, key: Tensor) -> bool:
    plain = query.dtype == torch.bfloat16 and query.dim() == 4 and query.shape == key.shape
    return plain and 0 < query.shape[1] * query.shape[2] ** 2 <= _MOST


def _is_same_for_all_queries(mask: Tensor) -> bool:
    return mask.dtype == torch.bool and mask.dim() == 4 and bool((mask == mask[:, :, :1]).all())


def _hide(query: Tensor, key: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Lower the scores of hidden keys by another column of the product."""
    hidden = torch.where(seen, 0.0, _HIDDEN).to(key.dtype)[..., None]
    key = torch.cat([key, hidden.expand(*key.shape[:3], 1)], 3)
    return torch.cat([query, query.new_ones(*query.shape[:3], 1)], 3), key


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute attention for as many texts at once as a cache holds."""
    texts, heads, tokens, size = value.shape
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    found = value.new_empty(texts, tokens, heads, size)
    step = max(1, _AT_ONCE // (heads * tokens * tokens))
    for start in range(0, texts, step):
        some = slice(start, start + step)
        scores = torch.matmul(query[some], key[some].transpose(2, 3))
        weights = torch.softmax(scores.to_mkldnn(), -1).to_dense()
        found[some] = torch.matmul(weights, value[some]).transpose(1, 2)
    return found.transpose(1, 2)


_REPLACED = {F.linear: _linear, F.scaled_dot_product_attention: _attention}
