"""Encode many texts with a sentence-transformers model, faster than its `encode` but with equal results.

Modules and prompts are the library's; only the order of the work differs:

- Many texts are tokenised at once, and batched by their number of tokens (the library: characters).
- Each visible GPU encodes with its copy of the model, while threads tokenise what comes next. Its
  batches are padded to a few widths, for which it finds memory and plans again.
- On a CPU, each thread has its own batches, small enough for its cache. Threads that share a batch wait
  for each other after every layer, and longer if other programs use the cores too.
- There, some operators are replaced; see `cpu_operators`.
- With bfloat16, the weights of transformers have that type; pooling and later modules stay in float32.
  Other models use torch's autocast, which converts weights and activations back and forth.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util import batch_to_device, truncate_embeddings
from torch import Tensor

from expandr_core.encoders.cpu_operators import CPUOperators, helps, keep_freed_memory
from expandr_core.encoders.tokenising import (
    Features,
    Kind,
    tokenise,
    tokenised_ahead,
    twin_of,
    widen,
)
from expandr_core.runtime.cores import work_on_all

Precision = Literal["float32", "bfloat16"]
CPU_TEXTS = 128  # texts that a thread takes and tokenises at once
_CPU_TOKENS = 2048  # per batch, so that MiniLM's activations fit into a cache
_CPU_WORKERS = 8  # more would wait for Python's lock


class BulkEncoder:
    """A model that encodes many texts.

    Attributes:
        model: the model, in float32.
    """

    def __init__(self, model: SentenceTransformer, batch_size: int, precision: Precision):
        """Wrap a model.

        Args:
            model: in float32, on its device.
            batch_size: texts per forward pass, at most.
            precision: of the arithmetic.
        """
        self.model = model
        self._worker, self._arithmetic = _prepare(model, precision)
        self._batch_size = batch_size
        self._copies: list[SentenceTransformer] = []

    def encode(self, texts: Sequence[str], kind: Kind) -> NDArray[np.float32]:
        """Encode texts with the model's prompt for their kind.

        Returns:
            (texts, dimensions), in the order of the texts.
        """
        # Cut the texts into blocks, the longest first, which all workers take in turn.
        dimensions = int(self.model.get_embedding_dimension() or 0)
        vectors = np.empty((len(texts), dimensions), dtype=np.float32)
        on_cpu = self.model.device.type == "cpu"
        at_once = CPU_TEXTS if on_cpu else 8 * self._batch_size
        longest_first = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        starts = range(0, len(texts), at_once)
        rows = [longest_first[start : start + at_once] for start in starts]
        blocks = [[texts[row] for row in own] for own in rows]
        numbers = iter(range(len(blocks)))
        reading = nullcontext() if on_cpu else tokenised_ahead(self._worker, blocks, kind)
        with reading as ahead:

            def work(model: SentenceTransformer) -> None:
                for number in numbers:
                    block = blocks[number]
                    features = ahead[number].result() if ahead else tokenise(model, block, kind)
                    vectors[rows[number]] = self._forward(model, features, len(block), kind)

            self._share(work, len(blocks))
        return vectors

    def _share(self, work: Callable[[SentenceTransformer], None], blocks: int) -> None:
        """Let a worker per GPU, or per core with a share of the threads, work at the same time."""
        on_cpu = self.model.device.type == "cpu"
        cores = min(_CPU_WORKERS, torch.get_num_threads())
        workers = cores if on_cpu else torch.cuda.device_count()
        models = [self._worker, *self._copies_for(min(workers, blocks) - 1)]
        work_on_all(work, models)

    def _copies_for(self, workers: int) -> list[SentenceTransformer]:
        """Return a copy of the model for each additional worker; on a CPU, copies share its weights."""
        for number in range(len(self._copies), workers):
            if self.model.device.type == "cuda":
                twin = copy.deepcopy(self._worker).to(f"cuda:{number + 1}")
            else:
                twin = twin_of(self._worker)
            self._copies.append(twin)
        return self._copies[: max(0, workers)]

    @torch.inference_mode()
    def _forward(
        self, model: SentenceTransformer, features: Features, texts: int, kind: Kind
    ) -> NDArray[np.float32]:
        """Encode tokenised texts; return (texts, dimensions)."""
        device = model.device
        on_cpu = device.type == "cpu"
        tokens = _CPU_TOKENS if on_cpu else None
        order: list[Tensor] = []
        found: list[Tensor] = []
        with self._arithmetic():
            for rows, batch in _batches(features, texts, self._batch_size, tokens, not on_cpu):
                order.append(rows)
                found.append(vectors_of(model, batch_to_device(batch, device), kind).float())
        encoded = torch.empty(texts, found[0].shape[1])
        encoded[torch.cat(order)] = torch.cat(found).cpu()  # one copy, after all batches
        return encoded.numpy()


def vectors_of(model: SentenceTransformer, features: Features, kind: Kind) -> Tensor:
    """Return the vectors of tokenised texts, cut at the model's `truncate_dim` if it has one."""
    vectors = model(features, task=kind)["sentence_embedding"]
    return truncate_embeddings(vectors, model.truncate_dim)


def _prepare(
    model: SentenceTransformer, precision: Precision
) -> tuple[SentenceTransformer, Callable[[], AbstractContextManager]]:
    """Return a model that computes with the precision, and the context to run it in."""
    device = model.device.type
    if device == "cpu":
        keep_freed_memory()
    operators = CPUOperators if device == "cpu" and helps(precision) else nullcontext
    if precision == "bfloat16":
        if isinstance(model[0], Transformer):
            return _with_bfloat16_weights(model), operators
        return model, partial(torch.autocast, device, torch.bfloat16)
    return model, operators


def _with_bfloat16_weights(model: SentenceTransformer) -> SentenceTransformer:
    """Copy a model, with a transformer that computes in bfloat16 and outputs float32."""

    def to_float32(module: object, inputs: object, features: Features) -> Features:
        vectors = features["token_embeddings"]
        return {**features, "token_embeddings": vectors.float()}

    twin = copy.deepcopy(model)
    twin[0].bfloat16().register_forward_hook(to_float32)
    return twin


def _batches(
    features: Features, texts: int, batch_size: int, most_tokens: int | None, few_widths: bool
) -> Iterator[tuple[Tensor, Features]]:
    """Cut padded features into batches of texts of similar length, the longest first.

    Features without a mask, such as those of a static embedding, have no padding and stay one batch.
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
        used |= ~used.any()  # keep a column even if no text has a token
        if few_widths:
            widen(used)
        yield rows, {name: _cut(value, mask.shape, rows, used) for name, value in features.items()}
        start += size


def _cut(value: Any, padded: torch.Size, rows: Tensor, used: Tensor) -> Any:
    """Take a batch's rows of a feature, and of a padded one the columns in use."""
    if not isinstance(value, Tensor):
        return value
    return value[rows][:, used] if value.shape[:2] == padded else value[rows]
