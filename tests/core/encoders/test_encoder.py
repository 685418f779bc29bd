"""The encoder: order, length, limits, and the fusion of query and expansion."""

from pathlib import Path

import numpy as np
import pytest
from evaluation_world import WORDS, save_static_retriever

from expandr_core.encoders.encode import Encoder, encode_expanded, unit
from expandr_core.errors import DataError
from expandr_core.options.retriever import EncodingOptions, FusionOptions


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_static_retriever(tmp_path_factory.mktemp("retriever"), WORDS)


def test_vectors_come_in_the_order_of_the_texts(retriever):
    encoder = Encoder(retriever, "cpu", EncodingOptions(max_tokens=64))
    texts = ["red", "red blue bird song", "stone river", "bird"]
    alone = np.concatenate([encoder.encode_passages([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode_passages(texts), alone, atol=1e-6)


def test_normalised_vectors_have_length_one_and_unknown_words_give_zeros(retriever):
    encoder = Encoder(retriever, "cpu", EncodingOptions(max_tokens=64))
    vectors = encoder.encode_passages(["red blue", "unheard", ""])
    assert not encoder.encode_passages([""]).any()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0], atol=1e-6)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, encoder.dimensions)


def test_a_vector_too_long_to_be_measured_does_not_become_zeros():
    """Nothing would refuse zeros, but searches and encodings refuse what is no number."""
    found = unit(np.array([[3e19, 4e19], [3, 4], [0, 0]], np.float32))
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1:], [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_unnormalised_vectors_are_those_of_the_model(retriever):
    encoder = Encoder(retriever, "cpu", EncodingOptions(similarity="dot", max_tokens=64))
    red, blue, both = encoder.encode_passages(["red", "blue", "red blue"])
    np.testing.assert_allclose(both, (red + blue) / 2, atol=1e-6)


def test_longer_texts_are_cut_at_the_smaller_limit(retriever, tmp_path):
    eight = "red blue bird song stone river red blue"
    nine = f"{eight} bird"
    cut = Encoder(retriever, "cpu", EncodingOptions(max_tokens=8))
    assert np.array_equal(cut.encode_passages([nine]), cut.encode_passages([eight]))
    cut.model.save(str(tmp_path))
    again = Encoder(tmp_path, "cpu", EncodingOptions(max_tokens=64))
    assert np.array_equal(again.encode_passages([nine]), again.encode_passages([eight]))


def test_no_texts_give_no_vectors(retriever):
    encoder = Encoder(retriever, "cpu", EncodingOptions(max_tokens=8))
    assert encoder.encode_passages([]).shape == (0, encoder.dimensions)


def test_a_folder_that_is_no_retriever_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not a sentence-transformers model"):
        Encoder(tmp_path, "cpu", EncodingOptions(max_tokens=8))


def test_a_retriever_with_a_default_prompt_is_refused(retriever, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(retriever), device="cpu", prompts={"query": "query: "})
    model.default_prompt_name = "query"
    model.save(str(tmp_path))
    with pytest.raises(DataError, match="prepends its prompt 'query'"):
        Encoder(tmp_path, "cpu", EncodingOptions(max_tokens=8))


def test_queries_and_passages_get_the_prompts_of_the_model(retriever, tmp_path):
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "red ", "document": "blue "}
    SentenceTransformer(str(retriever), device="cpu", prompts=prompts).save(str(tmp_path))
    plain, prompted = (
        Encoder(folder, "cpu", EncodingOptions()) for folder in (retriever, tmp_path)
    )
    expected = plain.encode_passages(["red bird", "blue bird"])
    np.testing.assert_array_equal(prompted.encode_queries(["bird"]), expected[:1])
    np.testing.assert_array_equal(prompted.encode_passages(["bird"]), expected[1:])


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_models_own_similarity_holds_unless_another_is_chosen(retriever, tmp_path, similarity):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(retriever), device="cpu", similarity_fn_name=similarity)
    model.save(str(tmp_path))
    assert Encoder(tmp_path, "cpu", EncodingOptions()).normalize == (similarity == "cosine")
    assert not Encoder(tmp_path, "cpu", EncodingOptions(similarity="dot")).normalize


def test_a_similarity_that_search_cannot_compute_is_refused(retriever, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(retriever), device="cpu", similarity_fn_name="euclidean")
    model.save(str(tmp_path))
    with pytest.raises(DataError, match="compares vectors by 'euclidean'"):
        Encoder(tmp_path, "cpu", EncodingOptions())


def test_bfloat16_changes_the_third_digit_at_most(retriever):
    texts = ["red blue", "stone river bird"]
    coarse = Encoder(retriever, "cpu", EncodingOptions(precision="bfloat16"))
    exact = Encoder(retriever, "cpu", EncodingOptions())
    vectors = coarse.encode_passages(texts)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, exact.encode_passages(texts), atol=0.01)


@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_an_expanded_query_is_the_weighted_mean_of_query_and_expansions(retriever, weight):
    encoder = Encoder(retriever, "cpu", EncodingOptions(similarity="dot"))
    options = FusionOptions(expansion_weight=weight)
    found = encode_expanded(encoder, ["red", "bird"], [["blue", "song"], []], options)
    red, bird, blue, song = encoder.encode_passages(["red", "bird", "blue", "song"])
    expected = [(1 - weight) * red + weight * (blue + song) / 2, bird]
    np.testing.assert_allclose(found, expected, atol=1e-6)
