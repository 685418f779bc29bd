"""Embed the texts of a batch in mini-batches, and train on all of them in bounded memory.

GradCache (Gao et al., 2021): the loss needs the vectors of the whole batch, but not the activations that
led to them. So all texts are embedded first; the loss gives a gradient for each vector; then each
mini-batch is back-propagated by itself, after a second forward pass if its activations were not kept.
Dropout is seeded by mini-batch, so both passes draw the same.

A text that occurs several times in a batch is embedded once, and texts of similar length share a
mini-batch, which saves padding.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import batch_to_device
from torch import Tensor

from expandr_core.encoders.bulk import Precision, vectors_of
from expandr_core.encoders.tokenising import Kind, prompt_of
from expandr_core.seeding import derive_seed

SMALL_BATCH = 8  # fits into the cache of a CPU
LARGE_BATCH = 64  # keeps a GPU busy; larger ones need more padding


class MiniBatch(NamedTuple):
    """Tokenised texts of one kind, and their number."""

    tokens: dict[str, Any]
    kind: Kind
    size: int


class TextBatch(NamedTuple):
    """The texts of some rows, tokenised.

    Attributes:
        mini_batches: every text once.
        positions: (rows, texts of a row) position of each text in the sequence of all mini-batches'
            texts; -1 for no text.
    """

    mini_batches: list[MiniBatch]
    positions: Tensor


class GradCache:
    """A model in training, which embeds texts and propagates gradients back in mini-batches."""

    def __init__(self, model: SentenceTransformer, precision: Precision, mini_batch_size: int):
        """Wrap a model.

        Args:
            model: on its device, with weights in float32.
            precision: of the model's operations; vectors are always float32.
            mini_batch_size: number of texts whose activations are kept at once.
        """
        self.model = model
        self.device = model.device
        self.precision = precision
        self.mini_batch_size = mini_batch_size
        self.dimensions = int(model.get_embedding_dimension() or 0)
        best = SMALL_BATCH if self.device.type == "cpu" else LARGE_BATCH
        static = isinstance(model[0], StaticEmbedding)  # has neither padding nor activations
        self.texts_at_once = mini_batch_size if static else min(mini_batch_size, best)

    def tokenise(self, rows: Sequence[Sequence[str | None]], width: int) -> TextBatch:
        """Tokenise the texts of rows; the first of a row is a query, the others are passages.

        Args:
            rows: each of `width` texts, None where there is none.
            width: texts of a row, needed if there are no rows.
        """
        # number each distinct text of a kind, the longest first, in the order of the mini-batches
        numbers: dict[tuple[Kind, str], int] = {}
        mini_batches: list[MiniBatch] = []
        columns: dict[Kind, slice] = {"query": slice(0, 1), "document": slice(1, None)}
        for kind, column in columns.items():
            distinct = dict.fromkeys(
                text for row in rows for text in row[column] if text is not None
            )
            texts = sorted(distinct, key=len, reverse=True)
            mini_batches += self.cut(texts, kind)
            numbers |= {(kind, text): len(numbers) + index for index, text in enumerate(texts)}

        # look up the number of each row's texts
        positions = [
            [
                -1 if text is None else numbers["document" if column else "query", text]
                for column, text in enumerate(row)
            ]
            for row in rows
        ]
        return TextBatch(mini_batches, torch.tensor(positions, dtype=torch.long).reshape(-1, width))

    def cut(self, texts: Sequence[str], kind: Kind) -> list[MiniBatch]:
        """Cut texts into mini-batches and tokenise them, with the model's prompt for the kind."""
        prompt = prompt_of(self.model, kind)
        size = self.texts_at_once
        some = [texts[start : start + size] for start in range(0, len(texts), size)]
        return [
            MiniBatch(self.model.preprocess(each, prompt=prompt, task=kind), kind, len(each))
            for each in some
        ]

    def embed(self, batch: TextBatch, seed: int) -> list[Tensor]:
        """Embed all texts, and keep the activations of the first `mini_batch_size` of them.

        Args:
            batch: as `tokenise` returned it.
            seed: seed of dropout.

        Returns:
            For each mini-batch the vectors (texts, dimensions), as the model returns them.
        """
        vectors, room = [], self.mini_batch_size
        with self._autocast():
            for number, mini_batch in enumerate(batch.mini_batches):
                with torch.set_grad_enabled(mini_batch.size <= room):
                    vectors.append(self._forward(mini_batch, derive_seed(seed, number)))
                room -= mini_batch.size
        return vectors

    def arrange(self, vectors: list[Tensor], positions: Tensor) -> Tensor:
        """Return the vectors of the rows' texts, without gradient, in float32.

        Args:
            vectors: of each mini-batch.
            positions: (rows, texts of a row), see `TextBatch`.

        Returns:
            (rows, texts of a row, dimensions); zeros where there is no text.
        """
        nothing = torch.zeros(1, self.dimensions, device=self.device)  # at position -1
        return torch.cat([*(each.detach().float() for each in vectors), nothing])[positions]

    def backward(
        self, batch: TextBatch, vectors: list[Tensor], gradient: Tensor, seed: int
    ) -> None:
        """Add the gradient of the loss to the gradients of the model's parameters.

        Args:
            batch: as `tokenise` returned it.
            vectors: as `embed` returned them; the list is emptied to free memory.
            gradient: (rows, texts of a row, dimensions) with respect to the result of `arrange`.
            seed: the seed that `embed` got.
        """
        # sum the gradients of a text over all its occurrences; those of no text go into a last row
        texts = sum(mini_batch.size for mini_batch in batch.mini_batches)
        positions = batch.positions.to(self.device).flatten() % (texts + 1)
        summed = torch.zeros(texts + 1, self.dimensions, device=self.device)
        summed.index_add_(0, positions, gradient.flatten(0, 1))

        # propagate them back by mini-batch, embedded again unless its activations were kept
        start = 0
        for number, mini_batch in enumerate(batch.mini_batches):
            embedded = vectors.pop(0)
            if not embedded.requires_grad:
                with self._autocast():
                    embedded = self._forward(mini_batch, derive_seed(seed, number))
            own = summed[start : start + mini_batch.size]
            embedded.backward(own.to(embedded.dtype))
            start += mini_batch.size

    def encode(self, texts: Sequence[str], kind: Kind) -> Tensor:
        """Return the vectors (texts, dimensions), without dropout and gradient, as after training."""
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]), reverse=True)
        mini_batches = self.cut([texts[index] for index in order], kind)
        self.model.eval()
        with torch.no_grad(), self._autocast():
            vectors = [self._forward(mini_batch) for mini_batch in mini_batches]
        self.model.train()
        result = torch.empty(len(texts), self.dimensions, device=self.device)
        if texts:
            result[torch.tensor(order, device=self.device)] = torch.cat(vectors).float()
        return result

    def _autocast(self) -> AbstractContextManager:
        coarse = self.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=coarse)

    def _forward(self, mini_batch: MiniBatch, seed: int | None = None) -> Tensor:
        """Embed a mini-batch, with dropout if there is a seed for it."""
        if seed is not None:
            torch.manual_seed(seed)
        tokens = {  # copies, since pooling without the prompt changes the mask in place
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in mini_batch.tokens.items()
        }
        tokens = batch_to_device(tokens, self.device)
        return vectors_of(self.model, tokens, mini_batch.kind)
