"""Texts are tokenised ahead as they would be in their turn, and padded to a few widths."""

import pytest
import torch
from retriever_world import save_bert
from sentence_transformers import SentenceTransformer

from expandr_core.encoders.tokenising import tokenise, tokenised_ahead, widen


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = save_bert(tmp_path_factory.mktemp("bert") / "model")
    return SentenceTransformer(str(folder), device="cpu", prompts={"query": "lay0 "}).eval()


def test_blocks_come_in_order_and_as_one_thread_would_tokenise_them(bert):
    blocks = [[f"lay{n % 6} tech{n % 5}", "lay1 " * (n + 1)] for n in range(20)]
    with tokenised_ahead(bert, blocks, "query") as ahead:
        found = [block.result() for block in ahead]
    for features, block in zip(found, blocks, strict=True):
        expected = tokenise(bert, block, "query")
        assert features.keys() == expected.keys()
        assert torch.equal(features["input_ids"], expected["input_ids"])


def test_after_an_error_the_other_blocks_are_left_out(bert):
    blocks = [["lay1"]] * 500
    with pytest.raises(RuntimeError), tokenised_ahead(bert, blocks, "document") as ahead:
        raise RuntimeError
    assert all(block.done() for block in ahead) and ahead[-1].cancelled()


@pytest.mark.parametrize(
    ("width", "columns", "wider"),
    [(3, 20, 8), (8, 20, 8), (17, 20, 20), (17, 40, 24), (129, 512, 144), (300, 512, 320)],
)
def test_a_width_becomes_one_of_few_beside_the_tokens_if_there_are_columns(width, columns, wider):
    left = torch.arange(columns) < width  # padded on the right
    right = left.flip(0)
    widen(left)
    widen(right)
    assert left.sum() == right.sum() == wider
    assert left[:wider].all() and right[-wider:].all()
