"""Embed the texts of a batch in mini-batches, and train on all of them in bounded memory.

GradCache (Gao et al., 2021): the loss needs the vectors of the whole batch, but not the activations
that led to them. So all texts are embedded first; the loss gives a gradient for each vector; then
each mini-batch is propagated back by itself, those whose activations were not kept after they were
embedded once more. Dropout draws from a seed of the mini-batch, so both times the same.

A text that occurs several times in a batch is embedded once, and texts of like length share a
mini-batch, so that little is padded.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import batch_to_device
from torch import Tensor

from expandr_core.encoders.bulk import Kind, Precision, prompt_of, vectors_of
from expandr_core.seeding import derive_seed

SMALL_BATCH = 8  # on a CPU, what stays in its cache
LARGE_BATCH = 64  # on a GPU, what keeps it busy; larger ones are padded more


class MiniBatch(NamedTuple):
    """Tokenised texts of one kind, and how many they are."""

    tokens: dict[str, Any]
    kind: Kind
    size: int


class TextBatch(NamedTuple):
    """The texts of some rows, tokenised.

    Attributes:
        mini_batches: every text once.
        places: (rows, texts of a row) number of each text among those of all mini-batches; -1 for
            no text.
    """

    mini_batches: list[MiniBatch]
    places: Tensor


class MiniBatchEncoder:
    """A model in training, which embeds texts in mini-batches."""

    def __init__(self, model: SentenceTransformer, precision: Precision, mini_batch_size: int):
        """Wrap a model.

        Args:
            model: on its device, with weights in float32.
            precision: of the model's operations; vectors are always float32.
            mini_batch_size: the activations of so many texts are kept at once.
        """
        self.model = model
        self.device = model.device
        self.precision = precision
        self.mini_batch_size = mini_batch_size
        self.dimensions = int(model.get_embedding_dimension() or 0)
        # token embeddings alone know neither padding nor activations
        best = SMALL_BATCH if self.device.type == "cpu" else LARGE_BATCH
        one = isinstance(model[0], StaticEmbedding)
        self.texts_at_once = mini_batch_size if one else min(mini_batch_size, best)

    def tokenise(self, rows: Sequence[Sequence[str | None]], width: int) -> TextBatch:
        """Tokenise the texts of rows; the first of a row is a query, the others are passages.

        Args:
            rows: each of `width` texts, None where there is none.
            width: texts of a row, also where there is no row.
        """
        numbers: dict[tuple[Kind, str], int] = {}
        mini_batches: list[MiniBatch] = []
        columns: dict[Kind, slice] = {"query": slice(0, 1), "document": slice(1, None)}
        for kind, column in columns.items():
            found = dict.fromkeys(text for row in rows for text in row[column] if text is not None)
            texts = sorted(found, key=len, reverse=True)
            mini_batches += self.cut(texts, kind)
            numbers |= {(kind, text): len(numbers) + place for place, text in enumerate(texts)}
        places = [
            [
                -1 if text is None else numbers["document" if column else "query", text]
                for column, text in enumerate(row)
            ]
            for row in rows
        ]
        return TextBatch(mini_batches, torch.tensor(places, dtype=torch.long).reshape(-1, width))

    def cut(self, texts: Sequence[str], kind: Kind) -> list[MiniBatch]:
        """Cut texts into mini-batches and tokenise them, with the model's own prompt for the kind."""
        prompt = prompt_of(self.model, kind)
        parts = [
            texts[start : start + self.texts_at_once]
            for start in range(0, len(texts), self.texts_at_once)
        ]
        return [
            MiniBatch(self.model.preprocess(part, prompt=prompt, task=kind), kind, len(part))
            for part in parts
        ]

    def embed(self, batch: TextBatch, seed: int) -> list[Tensor]:
        """Embed all texts; the activations are kept of as many as fit, from the first.

        Args:
            batch: as `tokenise` returned it.
            seed: of dropout.

        Returns:
            For each mini-batch the vectors (texts, dimensions), as the model gives them.
        """
        vectors, room = [], self.mini_batch_size
        with self._autocast():
            for number, mini_batch in enumerate(batch.mini_batches):
                with torch.set_grad_enabled(mini_batch.size <= room):
                    vectors.append(self._forward(mini_batch, derive_seed(seed, number)))
                room -= mini_batch.size
        return vectors

    def arrange(self, vectors: list[Tensor], places: Tensor) -> Tensor:
        """Return the vectors of the rows' texts, without gradient, of float32.

        Args:
            vectors: of each mini-batch.
            places: (rows, texts of a row), see `TextBatch`.

        Returns:
            (rows, texts of a row, dimensions); zeros where there is no text.
        """
        nothing = torch.zeros(1, self.dimensions, device=self.device)
        return torch.cat([*(each.detach().float() for each in vectors), nothing])[places]

    def backward(
        self, batch: TextBatch, vectors: list[Tensor], gradient: Tensor, seed: int
    ) -> None:
        """Add the gradient of the loss to the gradients of the model's parameters.

        Args:
            batch: as `tokenise` returned it.
            vectors: as `embed` returned them; the list is emptied, so that memory is freed.
            gradient: (rows, texts of a row, dimensions) with respect to what `arrange` returned.
            seed: that of `embed`.
        """
        texts = sum(mini_batch.size for mini_batch in batch.mini_batches)
        places = batch.places.to(self.device).flatten() % (texts + 1)  # -1 is the last
        summed = torch.zeros(texts + 1, self.dimensions, device=self.device)
        summed.index_add_(0, places, gradient.flatten(0, 1))
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
        """Embed texts as after training, without dropout and gradient; (texts, dimensions)."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]), reverse=True)
        mini_batches = self.cut([texts[place] for place in order], kind)
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
        """Embed a mini-batch; `seed` is of dropout."""
        if seed is not None:
            torch.manual_seed(seed)
        tokens = {  # copies, since pooling can leave the prompt out by changing the mask in place
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in mini_batch.tokens.items()
        }
        tokens = batch_to_device(tokens, self.device)
        return vectors_of(self.model, tokens, mini_batch.kind)
