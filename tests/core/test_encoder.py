"""The encoder: order, length, limits, and the fusion of query and expansion."""

from pathlib import Path

import numpy as np
import pytest
from evaluation_world import WORDS, save_static_retriever
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from expandr_core.encoder import Encoder, fuse, unit
from expandr_core.errors import DataError


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_static_retriever(tmp_path_factory.mktemp("retriever"), WORDS)


def test_vectors_come_in_the_order_of_the_texts(retriever):
    encoder = Encoder(retriever, "cpu", normalize=True, max_tokens=64, batch_size=2)
    texts = ["red", "red blue bird song", "stone river", "bird"]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode(texts), alone, atol=1e-6)


def test_normalised_vectors_have_length_one_and_unknown_words_give_zeros(retriever):
    encoder = Encoder(retriever, "cpu", normalize=True, max_tokens=64, batch_size=2)
    vectors = encoder.encode(["red blue", "unheard", ""])
    assert not encoder.encode([""]).any()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0], atol=1e-6)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, encoder.dimensions)


def test_unnormalised_vectors_are_those_of_the_model(retriever):
    encoder = Encoder(retriever, "cpu", normalize=False, max_tokens=64, batch_size=2)
    red, blue, both = encoder.encode(["red", "blue", "red blue"])
    np.testing.assert_allclose(both, (red + blue) / 2, atol=1e-6)


def test_longer_texts_are_cut_at_the_smaller_limit(retriever, tmp_path):
    cut = Encoder(retriever, "cpu", normalize=True, max_tokens=2, batch_size=2)
    assert np.array_equal(cut.encode(["red blue bird"]), cut.encode(["red blue"]))
    cut.model.save(str(tmp_path))
    again = Encoder(tmp_path, "cpu", normalize=True, max_tokens=64, batch_size=2)
    assert np.array_equal(again.encode(["red blue bird"]), again.encode(["red blue"]))


def test_no_texts_give_no_vectors(retriever):
    encoder = Encoder(retriever, "cpu", normalize=True, max_tokens=8, batch_size=2)
    assert encoder.encode([]).shape == (0, encoder.dimensions)


def test_a_folder_that_is_no_retriever_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not a sentence-transformers model"):
        Encoder(tmp_path, "cpu", normalize=True, max_tokens=8, batch_size=2)


def test_a_retriever_with_a_default_prompt_is_refused(retriever, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(retriever), device="cpu", prompts={"query": "query: "})
    model.default_prompt_name = "query"
    model.save(str(tmp_path))
    with pytest.raises(DataError, match="prepends its prompt 'query'"):
        Encoder(tmp_path, "cpu", normalize=True, max_tokens=8, batch_size=2)


VECTORS = arrays(np.int8, (4, 3), elements=st.integers(-9, 9)).map(np.float32)


@given(VECTORS, VECTORS, arrays(np.bool_, 4))
def test_fused_vectors_point_halfway_between_unit_vectors(queries, expansions, has_expansion):
    queries, expansions = unit(queries), unit(expansions)
    fused = fuse(queries, expansions, has_expansion, normalize=True)
    assert np.array_equal(fused[~has_expansion], queries[~has_expansion])
    to_query = (fused * queries).sum(1)[has_expansion]
    to_expansion = (fused * expansions).sum(1)[has_expansion]
    far_from_opposite = np.linalg.norm(queries + expansions, axis=1) > 0.1
    both = (queries.any(1) & expansions.any(1) & far_from_opposite)[has_expansion]
    np.testing.assert_allclose(to_query[both], to_expansion[both], atol=1e-3)


@given(VECTORS)
def test_an_expansion_equal_to_its_query_changes_nothing(queries):
    queries = unit(queries)
    fused = fuse(queries, queries, np.ones(4, dtype=bool), normalize=True)
    np.testing.assert_allclose(fused, queries, atol=1e-6)
