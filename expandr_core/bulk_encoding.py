"""Run a sentence-transformers model over many texts: what its own `encode` does, in less time.

Modules, prompts and results are the library's; what differs is the order of the work. Texts are
tokenised many at once and batched by their number of tokens (the library: by characters), and on a CPU
a batch is as small as its cache likes. There float32 products go to oneDNN: the MKL that torch would
ask runs at half its speed on processors that are not Intel's.
"""

import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor
from torch.overrides import TorchFunctionMode

Kind = Literal["query", "document"]  # as in encode_query and encode_document
Precision = Literal["float32", "bfloat16"]
Features = dict[str, Any]
PROMPTS: dict[Kind, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
}
TOKENISED_AT_ONCE = 512
_CPU_TOKENS = 2048  # in a batch: what MiniLM makes of them stays in a cache


class OneDNNLinear(TorchFunctionMode):
    """Let oneDNN do the linear layers, by the operator that torch.compile uses as well."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the function that `nn.Linear` calls, and no other."""
        replaced = _linear if func is F.linear else func
        return replaced(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.dtype != torch.float32:
        return F.linear(input, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def prompt_of(model: SentenceTransformer, kind: Kind) -> str | None:
    """Return the model's own prompt, as its `encode_query` and `encode_document` prepend it."""
    return next((model.prompts[name] for name in PROMPTS[kind] if name in model.prompts), None)


def encode(
    models: Sequence[SentenceTransformer],
    texts: Sequence[str],
    kind: Kind,
    batch_size: int,
    precision: Precision,
) -> NDArray[np.float32]:
    """Encode texts, the longest first.

    Args:
        models: equal ones in float32, on different devices, which share the work.
        texts: (texts,)
        kind: which of the model's prompts and routes.
        batch_size: texts per forward pass, at most.
        precision: of the arithmetic; bfloat16 as torch's autocast does it.

    Returns:
        (texts, dimensions), in the order of the texts.
    """
    dimensions = int(models[0].get_embedding_dimension() or 0)
    vectors = np.empty((len(texts), dimensions), dtype=np.float32)
    longest_first = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    starts = range(0, len(texts), TOKENISED_AT_ONCE)
    blocks = [longest_first[start : start + TOKENISED_AT_ONCE] for start in starts]

    def encode_share(place: int) -> None:
        for rows in blocks[place :: len(models)]:
            block = [texts[row] for row in rows]
            vectors[rows] = _forward(models[place], block, kind, batch_size, precision).numpy()

    if len(models) == 1:
        encode_share(0)
    else:
        with ThreadPoolExecutor(len(models)) as pool:
            list(pool.map(encode_share, range(len(models))))
    return vectors


@torch.inference_mode()
def _forward(
    model: SentenceTransformer, texts: list[str], kind: Kind, batch_size: int, precision: Precision
) -> Tensor:
    """Encode texts that are tokenised together; (texts, dimensions), float32, on the CPU."""
    features = model.preprocess(texts, prompt=prompt_of(model, kind), task=kind)
    device = model.device
    tokens = _CPU_TOKENS if device.type == "cpu" else None
    found = torch.empty(len(texts), int(model.get_embedding_dimension() or 0))
    with _arithmetic(device.type, precision):
        for rows, batch in _batches(features, len(texts), batch_size, tokens):
            encoded = model(batch_to_device(batch, device), task=kind)
            found[rows] = encoded["sentence_embedding"].float().cpu()
    return found


def _arithmetic(device: str, precision: Precision) -> AbstractContextManager:
    if precision == "bfloat16":
        return torch.autocast(device, torch.bfloat16)
    x86 = platform.machine() in ("x86_64", "AMD64")
    if device == "cpu" and x86 and torch.backends.mkldnn.is_available():
        return OneDNNLinear()
    return nullcontext()


def _batches(
    features: Features, texts: int, batch_size: int, most_tokens: int | None
) -> Iterator[tuple[Tensor, Features]]:
    """Cut padded features into batches of texts of about one length, the longest first.

    Features without a mask, such as a static embedding's, are one batch: they are not padded.
    """
    mask = features.get("attention_mask")
    if mask is None:
        yield torch.arange(texts), features
        return
    lengths = mask.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    start = 0
    while start < texts:
        size = batch_size
        if most_tokens:
            longest = max(1, int(lengths[order[start]]))
            size = max(1, min(batch_size, most_tokens // longest))
        rows = order[start : start + size]
        used = mask[rows].any(dim=0)
        used |= ~used.any()  # of texts without a token, something has to be left
        yield rows, {name: _cut(value, mask.shape, rows, used) for name, value in features.items()}
        start += size


def _cut(value: Any, padded: torch.Size, rows: Tensor, used: Tensor) -> Any:
    """Take a batch's rows of a feature, and of a padded one the columns that a row uses."""
    if not isinstance(value, Tensor):
        return value
    return value[rows][:, used] if value.shape[:2] == padded else value[rows]
