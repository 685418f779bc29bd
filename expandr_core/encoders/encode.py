"""Texts to vectors, with the same model, prompts, lengths and similarity in every stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from expandr_core.encoders.load import load_retriever, normalizes
from expandr_core.options.retriever import EncodingOptions, FusionOptions

if TYPE_CHECKING:
    from expandr_core.encoders.tokenising import Kind
    from expandr_core.runtime.job import Job

Vectors = NDArray[np.float32]
# error of a vector, relative to its length, that depends on how texts are batched and padded
ROUNDING = {"float32": 2.0**-18, "bfloat16": 2.0**-8}


def unit(vectors: Vectors) -> Vectors:
    """Scale each row to length 1; a row of zeros (a text of unknown tokens only) stays as it is.

    A row whose length overflows, as of a diverged retriever, becomes NaN.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[np.isinf(lengths)] = np.nan  # or they would become zeros
    return vectors / np.where(lengths == 0, 1, lengths).astype(np.float32)


class Encoder:
    """A retriever's encoder, loaded once.

    Attributes:
        model: the sentence-transformers model.
        normalize: whether vectors have length 1.
        dimensions: size of the vectors.
        rounding: error of an inner product, relative to the product of the two vectors' lengths.
    """

    def __init__(self, folder: Path, device: str, encoding: EncodingOptions):
        """Load the model; see `load_retriever`.

        Args:
            folder: the model's folder.
            device: "cpu", "cuda" or "auto".
            encoding: how texts become vectors.
        """
        from expandr_core.encoders.bulk import BulkEncoder

        self.model = load_retriever(folder, device, encoding)
        self.normalize = normalizes(self.model, encoding)
        self._bulk = BulkEncoder(self.model, encoding.batch_size, encoding.precision)
        self.rounding = ROUNDING[encoding.precision]
        self.dimensions = int(self.model.get_embedding_dimension() or 0)

    def encode_queries(self, texts: Sequence[str], raw: bool = False) -> Vectors:
        """Encode queries, with the model's own prompt for queries.

        Args:
            texts: the queries.
            raw: return vectors as the model does, even if `normalize`.

        Returns:
            (texts, dimensions), in the order of the texts; of length 1 if `normalize`.
        """
        return self._encode(texts, "query", raw)

    def encode_passages(self, texts: Sequence[str], raw: bool = False) -> Vectors:
        """Encode passages, expansions or answers, with the model's own prompt for passages.

        Args:
            texts: the passages.
            raw: return vectors as the model does, even if `normalize`.

        Returns:
            (texts, dimensions), in the order of the texts; of length 1 if `normalize`.
        """
        return self._encode(texts, "document", raw)

    def _encode(self, texts: Sequence[str], kind: "Kind", raw: bool) -> Vectors:
        vectors = self._bulk.encode(texts, kind)
        return unit(vectors) if self.normalize and not raw else vectors


def encoder_of(job: "Job", encoding: EncodingOptions) -> Encoder:
    """Load a stage's input `retriever`."""
    device = job.spec.runtime.get("device", "auto")
    return Encoder(job.inputs["retriever"], device, encoding)


def encode_expanded(
    encoder: Encoder, queries: list[str], expansions: list[list[str]], options: FusionOptions
) -> Vectors:
    """Encode expanded queries for search; texts without weight are not encoded.

    Args:
        encoder: the retriever's.
        queries: (queries,)
        expansions: each query's expansions; a query without any is searched alone.
        options: see `Fusion`. Ranks ("rrf") are no vectors: there this
            returns weighted means, for training; see `search_expanded`.

    Returns:
        (queries, dimensions)
    """
    import torch

    from expandr_core.encoders.fusion import Fusion

    weight = options.expansion_weight
    if weight == 0:
        return encoder.encode_queries(queries)
    fusion = Fusion.of(encoder.model, encoder.normalize, options)
    if options.method == "concatenate":
        pairs = zip(queries, expansions, strict=True)
        return encoder.encode_queries([fusion.texts(*pair)[0] for pair in pairs])
    raw = options.method == "hyde"
    needed = [row for row, texts in enumerate(expansions) if not texts or weight < 1]
    vectors = np.zeros((len(queries), encoder.dimensions), dtype=np.float32)
    vectors[needed] = encoder.encode_queries([queries[row] for row in needed], raw)
    expanded = encoder.encode_passages([text for texts in expansions for text in texts], raw)
    counts = torch.tensor([len(texts) for texts in expansions])
    return fusion.fuse(torch.from_numpy(vectors), torch.from_numpy(expanded), counts).numpy()
