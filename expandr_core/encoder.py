"""Texts to vectors, and the vector of an expanded query: the same in reward, mining and search.

The paper's code trains on raw inner products and evaluates normalised vectors (and averages these
without scaling the mean back to length 1). Here one choice, `normalize`, holds everywhere; whoever
trains loads the model with `load_retriever` and fuses by the same rule.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from expandr_core.errors import DataError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from expandr_core.stage import Job

Vectors = NDArray[np.float32]
SMALL_BATCH = 16  # on a CPU, what stays in its cache: 1.4 times as fast as 128 with MiniLM


def unit(vectors: Vectors) -> Vectors:
    """Scale each row to length 1; a row of zeros (a text without a known token) stays as it is.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1).astype(np.float32)


def fuse(
    queries: Vectors, expansions: Vectors, has_expansion: NDArray[np.bool_], normalize: bool
) -> Vectors:
    """Average the vectors of queries and their expansions: the search vectors of expanded queries.

    Args:
        queries: (queries, dimensions), of length 1 if `normalize`.
        expansions: (queries, dimensions), of length 1 if `normalize`; rows without an expansion
            are not read.
        has_expansion: (queries,); where False, the result is the query's own vector.
        normalize: scale the mean to length 1, so that its inner products are cosines.

    Returns:
        (queries, dimensions)

    >>> queries = np.array([[1, 0], [1, 0]], dtype=np.float32)
    >>> expansions = np.array([[0, 1], [0, 1]], dtype=np.float32)
    >>> fuse(queries, expansions, np.array([True, False]), normalize=False).tolist()
    [[0.5, 0.5], [1.0, 0.0]]
    >>> fuse(queries, expansions, np.array([True, False]), normalize=True).round(2).tolist()
    [[0.7099999785423279, 0.7099999785423279], [1.0, 0.0]]
    """
    mean = (queries + expansions) * np.float32(0.5)
    return np.where(has_expansion[:, None], unit(mean) if normalize else mean, queries)


def load_retriever(folder: Path, device: str, max_tokens: int) -> "SentenceTransformer":
    """Load a sentence-transformers model from its folder, in float32, never from a hub.

    Args:
        folder: as `SentenceTransformer.save` wrote it, with safetensors weights.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
        max_tokens: longer texts are cut here, or at the model's own limit if that is smaller.

    Raises:
        DataError: if the folder is no such model, or is one that we could not use faithfully.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # it would write over the terminal for every model loaded
    if not (folder / "modules.json").exists() or not any(folder.rglob("*.safetensors")):
        raise DataError(
            f"{folder}: not a sentence-transformers model with safetensors weights "
            "(modules.json, *.safetensors); save one with SentenceTransformer.save"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = SentenceTransformer(
            str(folder), device=device, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(f"{folder}: the retriever cannot be loaded: {error}") from error
    if model.default_prompt_name is not None:
        raise DataError(
            f"{folder}: the retriever prepends its prompt {model.default_prompt_name!r} to texts, "
            "which training would not; remove default_prompt_name from its configuration"
        )
    first: Any = model[0]
    if isinstance(first, StaticEmbedding):  # its limit, if any, is the tokenizer's
        truncation = first.tokenizer.truncation
        own = truncation["max_length"] if truncation else max_tokens
        first.tokenizer.enable_truncation(min(own, max_tokens))
    else:
        model.max_seq_length = min(model.max_seq_length or max_tokens, max_tokens)
    return model.float().eval()


class Encoder:
    """A retriever's encoder, loaded once.

    Attributes:
        model: the sentence-transformers model.
        dimensions: size of the vectors.
    """

    def __init__(
        self, folder: Path, device: str, normalize: bool, max_tokens: int, batch_size: int
    ):
        """Load the model; see `load_retriever`.

        Args:
            folder: the model's folder.
            device: "cpu", "cuda" or "auto".
            normalize: scale vectors to length 1.
            max_tokens: longer texts are cut.
            batch_size: texts per forward pass, on a CPU at most `SMALL_BATCH`.
        """
        self.model = load_retriever(folder, device, max_tokens)
        self.normalize = normalize
        on_cpu = self.model.device.type == "cpu"
        self.batch_size = min(batch_size, SMALL_BATCH) if on_cpu else batch_size
        self.dimensions = int(self.model.get_embedding_dimension() or 0)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Encode texts, sorted by length inside, so that little is padded.

        Returns:
            (texts, dimensions), in the order of the texts; of length 1 if `normalize`.
        """
        if not len(texts):
            return np.zeros((0, self.dimensions), dtype=np.float32)
        vectors = self.model.encode(
            list(texts), batch_size=self.batch_size, show_progress_bar=False
        ).astype(np.float32, copy=False)
        return unit(vectors) if self.normalize else vectors


def encoder_of(job: "Job") -> Encoder:
    """Load the encoder of a stage: its input `retriever`, as the stage's options say."""
    options = job.options
    return Encoder(
        job.inputs["retriever"],
        job.spec.runtime.get("device", "auto"),
        options.normalize,
        options.max_tokens,
        options.batch_size,
    )
