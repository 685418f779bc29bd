"""Many texts at once: the vectors are sentence-transformers' own, and little is padded."""

import numpy as np
import pytest
import torch
from retriever_world import save_bert
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny_models import save_llm

from expandr_core.encoders.bulk import BulkEncoder
from expandr_core.encoders.tokenising import Kind
from expandr_core.training.grad_cache import GradCache

PROMPTS = {"query": "lay0 ", "passage": "tech1 tech2 "}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = save_bert(tmp_path_factory.mktemp("bert") / "model")
    return SentenceTransformer(str(folder), device="cpu", prompts=PROMPTS).eval()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    """A Llama, padded on the left, whose last token's vector is the text's."""
    transformer = Transformer(str(save_llm(tmp_path_factory.mktemp("llm"))))
    transformer.tokenizer.padding_side = "left"
    pooling = Pooling(transformer.get_embedding_dimension(), "lasttoken")
    modules = [transformer, pooling]
    return SentenceTransformer(modules=modules, device="cpu", prompts=PROMPTS).eval()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    random = np.random.default_rng(0)
    words = [f"lay{n}" for n in range(6)] + [f"tech{n}" for n in range(6)]
    return [" ".join(random.choice(words, random.integers(0, 24))) for _ in range(700)]


@pytest.mark.parametrize("name", ["bert", "decoder"])
def test_vectors_are_those_of_sentence_transformers(name, texts, request):
    model = request.getfixturevalue(name)
    queries = BulkEncoder(model, 32, "float32").encode(texts, "query")
    np.testing.assert_allclose(queries, model.encode_query(texts), atol=1e-5)
    passages = BulkEncoder(model, 32, "float32").encode(texts, "document")
    expected = model.encode(texts, prompt_name="passage", task="document")
    np.testing.assert_allclose(passages, expected, atol=1e-5)
    assert np.abs(queries - passages).max() > 0.01  # their prompts differ


def test_training_sees_the_same_prompts_and_dimensions(bert, texts):
    with bert.truncate_embeddings(5):
        names: dict[Kind, str] = {"query": "query", "document": "passage"}
        for kind, name in names.items():
            expected = bert.encode(texts[:9], prompt_name=name)
            found = GradCache(bert, "float32", 4).encode(texts[:9], kind)
            assert found.shape == (9, 5)
            np.testing.assert_allclose(found, expected, atol=1e-5)
    bert.eval()


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_the_texts_and_the_weights(bert, texts, threads):
    alone = BulkEncoder(bert, 32, "float32").encode(texts, "query")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        several = BulkEncoder(bert, 32, "float32")
        np.testing.assert_allclose(several.encode(texts, "query"), alone, atol=1e-6)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    [*copies] = several._copies
    assert len(copies) == threads - 1
    for twin in copies:
        pairs = zip(twin.parameters(), bert.parameters(), strict=True)
        assert all(ours is theirs for ours, theirs in pairs)


def test_a_batch_fits_the_cache_and_has_texts_of_one_length(bert, texts):
    shapes, tokens = [], []

    def note(module: torch.nn.Module, inputs: tuple) -> None:
        shapes.append(inputs[0]["input_ids"].shape)
        tokens.append(int(inputs[0]["attention_mask"].sum()))

    hook = bert[0].register_forward_pre_hook(note)
    BulkEncoder(bert, 256, "float32").encode(texts, "document")
    assert sum(rows for rows, _ in shapes) == 700
    assert max(rows * columns for rows, columns in shapes) <= 2048
    shapes.clear()
    tokens.clear()
    BulkEncoder(bert, 16, "float32").encode(texts, "document")
    hook.remove()
    assert max(rows for rows, _ in shapes) == 16
    assert sum(rows * columns for rows, columns in shapes) < 1.05 * sum(tokens)


def test_bfloat16_changes_the_third_digit_at_most(bert, texts):
    coarse = BulkEncoder(bert, 32, "bfloat16").encode(texts, "document")
    exact = BulkEncoder(bert, 32, "float32").encode(texts, "document")
    coarse, exact = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (coarse, exact))
    assert coarse.dtype == np.float32
    assert 0 < np.abs(coarse - exact).max() < 0.02
