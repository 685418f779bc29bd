"""Try a retriever before any work: load its encoder, and encode queries and passages."""

from pathlib import Path

import numpy as np

from expandr_core.encoders.encode import Encoder, Vectors
from expandr_core.errors import DataError, first_line
from expandr_core.options.retriever import EncodingOptions, Similarity
from expandr_core.runtime.weights import check_finite

# they differ in words, length and script, so that any tokenizer tells some of them apart
SENTENCES = (
    "Wings lift.",
    "What is the capital of France, and since when?",
    "red moon dust",
    "Der Vertrag endet am 31. Dezember 2024, wenn niemand widerspricht.",
    "날개는 비행기를 들어 올린다.",
    "光合作用把光能变成化学能。",
    "def add(a, b): return a + b",
)
LONG = "A wing moves air down, and the air moves the wing up. " * 60


def check_retriever(folder: Path, similarity: Similarity = "model") -> None:
    """Load a retriever and encode sentences, and a text longer than any limit.

    Args:
        folder: a model of sentence-transformers.
        similarity: see `EncodingOptions`.

    Raises:
        DataError: with what is wrong and what to do.
    """
    vectors: dict[str, Vectors] = {}
    text = ""
    try:
        encoder = Encoder(folder, "cpu", EncodingOptions(similarity=similarity))
        check_finite(folder, encoder.model)
        sentences = [*SENTENCES, *_known_words(encoder)]
        vectors["queries"] = encoder.encode_queries(sentences)
        vectors["passages"] = encoder.encode_passages(sentences)
        text = " with a long text: lower max_seq_length in its sentence_bert_config.json, or"
        encoder.encode_passages([LONG])
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{folder}: does not work as a sentence-transformers model ({first_line(error)})"
            f"{text or ';'} name a folder written by SentenceTransformer.save in retriever.model"
        ) from error
    for kind, encoded in vectors.items():
        _check_vectors(folder, kind, encoded)


def _known_words(encoder: Encoder) -> list[str]:
    """Return a few words of the model's vocabulary, as it may lack all words of the sentences."""
    vocabulary = getattr(encoder.model.tokenizer, "get_vocab", dict)()
    words = sorted(word for word in vocabulary if word.isalnum())
    return words[:: max(1, len(words) // 8)]


def _check_vectors(folder: Path, kind: str, vectors: Vectors) -> None:
    if not np.isfinite(vectors).all() or not vectors.any():
        raise DataError(
            f"{folder}: the vectors of {kind} are not finite or all zero: {vectors.shape} "
            f"{vectors.ravel()[:3]}...; the weights are damaged, so get the model again"
        )
    exact = vectors.astype(np.float64)
    directions = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-300)
    if (directions @ directions.T).min() > 1 - 2.0**-23:  # float32 cannot tell them apart
        raise DataError(
            f"{folder}: {len(vectors)} different {kind} all have the same vector; the weights are "
            "damaged or collapsed in training, so get the model again, or name another in "
            "retriever.model"
        )
