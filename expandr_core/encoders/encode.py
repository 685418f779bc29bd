"""Texts to vectors: the same model, prompts, lengths and similarity in every stage.

What a model was trained with stands in its own sentence-transformers configuration, and is taken from
there; whoever trains loads the model with `load_retriever` too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from expandr_core.errors import DataError
from expandr_core.options.retriever import EncodingOptions
from expandr_core.runtime.device import run_device

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from expandr_core.encoders.bulk import Kind
    from expandr_core.runtime.job import Job

Vectors = NDArray[np.float32]
# what a vector may err by, relative to its length: how texts are batched and padded decides it
ROUNDING = {"float32": 2.0**-18, "bfloat16": 2.0**-8}


def unit(vectors: Vectors) -> Vectors:
    """Scale each row to length 1; a row of zeros (a text without a known token) stays as it is.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1).astype(np.float32)


def load_retriever(folder: Path, device: str, encoding: EncodingOptions) -> "SentenceTransformer":
    """Load a sentence-transformers model from its folder, in float32, never from a hub.

    Args:
        folder: as `SentenceTransformer.save` wrote it, with safetensors weights.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        encoding: longer texts are cut at its `max_tokens`, or at the model's own smaller limit.

    Raises:
        DataError: if the folder is no such model, or is one that we could not use faithfully.
    """
    from transformers.utils.logging import disable_progress_bar

    from expandr_core.encoders.sentence_transformer import load_sentence_model

    disable_progress_bar()  # it would write over the terminal for every model loaded
    if not (folder / "modules.json").exists() or not any(folder.rglob("*.safetensors")):
        raise DataError(
            f"{folder}: not a sentence-transformers model with safetensors weights "
            "(modules.json, *.safetensors); save one with SentenceTransformer.save"
        )
    device = run_device(device)
    try:
        model = load_sentence_model(folder, device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(f"{folder}: the retriever cannot be loaded: {error}") from error
    refuse_default_prompt(folder, model)
    limit_texts(model, encoding.max_tokens)
    return model.float().eval()


def limit_texts(model: "SentenceTransformer", max_tokens: int) -> None:
    """Let a model cut longer texts, each of its encoders by itself, if it does not cut shorter."""
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    first: Any = model[0]
    routes: list[Any] = [first]
    if isinstance(first, Router):
        routes = [modules[0] for modules in first.sub_modules.values()]  # pyright: ignore[reportIndexIssue]
    for encoder in routes:
        if isinstance(encoder, StaticEmbedding):  # its limit, if any, is the tokenizer's
            truncation = encoder.tokenizer.truncation
            own = truncation["max_length"] if truncation else max_tokens
            encoder.tokenizer.enable_truncation(min(own, max_tokens))
        else:
            own = getattr(encoder, "max_seq_length", None) or max_tokens
            encoder.max_seq_length = min(own, max_tokens)


def refuse_default_prompt(folder: Path, model: "SentenceTransformer") -> None:
    """Refuse a model that prepends a prompt to every text.

    Raises:
        DataError: if it does.
    """
    if model.default_prompt_name is not None:
        raise DataError(
            f"{folder}: the retriever prepends its prompt {model.default_prompt_name!r} to texts, "
            "which training would not; remove default_prompt_name from its configuration"
        )


def normalizes(model: "SentenceTransformer", encoding: EncodingOptions) -> bool:
    """Tell whether vectors are scaled to length 1, which makes inner products cosines.

    Raises:
        DataError: if the model compares vectors in a way that exact search does not know.
    """
    similarity = encoding.similarity
    if similarity == "model":
        similarity = model.similarity_fn_name
    if similarity not in ("cosine", "dot"):
        raise DataError(
            f"the retriever compares vectors by {similarity!r}; set retriever.encoding.similarity "
            "to 'cosine' or 'dot'"
        )
    return similarity == "cosine"


class Encoder:
    """A retriever's encoder, loaded once.

    Attributes:
        model: the sentence-transformers model.
        normalize: vectors have length 1.
        dimensions: size of the vectors.
        rounding: what an inner product may err by, as a share of the lengths of its two vectors.
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

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """Encode queries, with the model's own prompt for queries.

        Returns:
            (texts, dimensions), in the order of the texts; of length 1 if `normalize`.
        """
        return self._encode(texts, "query")

    def encode_passages(self, texts: Sequence[str]) -> Vectors:
        """Encode passages, expansions or answers, with the model's own prompt for passages.

        Returns:
            (texts, dimensions), in the order of the texts; of length 1 if `normalize`.
        """
        return self._encode(texts, "document")

    def _encode(self, texts: Sequence[str], kind: "Kind") -> Vectors:
        vectors = self._bulk.encode(texts, kind)
        return unit(vectors) if self.normalize else vectors


def encoder_of(job: "Job") -> Encoder:
    """Load the encoder of a stage: its input `retriever`, as the stage's options say."""
    device = job.spec.runtime.get("device", "auto")
    return Encoder(job.inputs["retriever"], device, job.options.encoding)


def encode_expanded(
    encoder: Encoder, queries: list[str], expansions: list[list[str]], expansion_weight: float
) -> Vectors:
    """Encode expanded queries: what is searched with.

    Args:
        encoder: the retriever's.
        queries: (queries,)
        expansions: each query's expansions; where there is none, the query stands alone.
        expansion_weight: see `Fusion`. Texts that do not matter are not encoded.

    Returns:
        (queries, dimensions)
    """
    import torch

    from expandr_core.encoders.fusion import Fusion

    if expansion_weight == 0:
        return encoder.encode_queries(queries)
    needed = [place for place, texts in enumerate(expansions) if not texts or expansion_weight < 1]
    alone = np.zeros((len(queries), encoder.dimensions), dtype=np.float32)
    alone[needed] = encoder.encode_queries([queries[place] for place in needed])
    written = encoder.encode_passages([text for texts in expansions for text in texts])
    counts = torch.tensor([len(texts) for texts in expansions])
    fusion = Fusion(encoder.normalize, expansion_weight)
    return fusion.fuse(torch.from_numpy(alone), torch.from_numpy(written), counts).numpy()
