"""Fusions of the literature, worked out by hand in two dimensions: HyDE, Query2Doc, LLM-QE."""

from pathlib import Path

import numpy as np
import pytest
import retriever_world as world
import torch

from expandr_core.encoders.encode import Encoder, encode_expanded
from expandr_core.encoders.fusion import Fusion
from expandr_core.errors import DataError
from expandr_core.options.retriever import EncodingOptions, FusionMethod, FusionOptions

VECTORS = {"east": [3.0, 0.0], "north": [0.0, 4.0], "far": [0.0, 8.0]}


@pytest.fixture(scope="module")
def plane(tmp_path_factory) -> Path:
    return world.save_plane(tmp_path_factory.mktemp("plane"), VECTORS)


def searched(
    folder: Path, method: FusionMethod, weight: float, *texts: str, similarity: str = "dot"
) -> list[float]:
    """Return the vector of a query, the first text, with expansions, the others."""
    encoder = Encoder(folder, "cpu", EncodingOptions.model_validate({"similarity": similarity}))
    options = FusionOptions(method=method, expansion_weight=weight)
    query, *expansions = texts
    return encode_expanded(encoder, [query], [expansions], options)[0].tolist()


def test_hyde_averages_n_documents_and_the_query_with_equal_weights(plane):
    texts = ("east", "north", "far")  # (3, 0), (0, 4), (0, 8)
    assert searched(plane, "hyde", 0.5, *texts) == pytest.approx([1, 4])
    assert searched(plane, "vector", 2 / 3, *texts) == pytest.approx([1, 4])  # weight n / (n + 1)
    assert searched(plane, "vector", 0.5, *texts) == pytest.approx([1.5, 3])


def test_hyde_scales_the_mean_and_nothing_before_it(plane):
    found = searched(plane, "hyde", 0.5, "east", "north", "far", similarity="cosine")
    assert found == pytest.approx(np.array([1, 4]) / 17**0.5)


@pytest.mark.parametrize("method", ["vector", "hyde", "concatenate"])
def test_weights_0_and_1_are_query_and_expansions_alone(plane, method):
    texts = ("east", "north", "far")
    assert searched(plane, method, 0, *texts) == pytest.approx([3, 0])
    assert searched(plane, method, 1, *texts) == pytest.approx([0, 6])
    for weight in (0, 0.5, 1):
        assert searched(plane, method, weight, "east") == pytest.approx([3, 0])  # no expansion


def test_query2doc_encodes_query_and_expansion_as_one_text(plane):
    assert searched(plane, "concatenate", 0.5, "east", "north far") == pytest.approx([1, 4])
    assert searched(plane, "vector", 0.5, "east", "north far") == pytest.approx([1.5, 3])


def test_a_fusion_of_a_batch_is_that_of_each_query(plane):
    queries = torch.tensor([[3.0, 0.0], [5.0, 0.0]])
    expansions = torch.tensor([[0.0, 4.0], [0.0, 8.0]])
    fused = Fusion(False, method="hyde").fuse(queries, expansions, torch.tensor([2, 0]))
    assert fused.tolist() == [[1, 4], [5, 0]]


def test_joined_texts_are_separated_as_the_tokenizer_does_and_read_as_a_query(tmp_path):
    encoder = Encoder(world.save_bert(tmp_path / "bert"), "cpu", EncodingOptions())
    options = FusionOptions(method="concatenate")
    found = encode_expanded(encoder, ["lay0", "lay1"], [["tech2", "tech3"], []], options)
    text = "lay0[SEP]tech2[SEP]tech3"
    np.testing.assert_allclose(found, encoder.encode_queries([text, "lay1"]), atol=1e-6)
    ids = encoder.model.tokenizer(text)["input_ids"]
    assert ids == [2, 4, 3, 14, 3, 15, 3]  # [CLS] lay0 [SEP] tech2 [SEP] tech3 [SEP]


def test_of_a_text_that_is_too_long_the_query_survives(tmp_path):
    encoder = Encoder(world.save_bert(tmp_path / "bert"), "cpu", EncodingOptions(max_tokens=8))
    options = FusionOptions(method="concatenate")
    queries, long = ["lay0 lay1", "lay2 lay3"], ["tech0 " * 40]
    found = encode_expanded(encoder, queries, [long, long], options)
    kept = [f"{query}[SEP]tech0 tech0 tech0" for query in queries]
    np.testing.assert_allclose(found, encoder.encode_queries(kept), atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_a_tokenizer_that_would_cut_the_query_is_refused(tmp_path):
    encoder = Encoder(world.save_bert(tmp_path / "bert"), "cpu", EncodingOptions())
    encoder.model.tokenizer.truncation_side = "left"
    with pytest.raises(DataError, match=r"cuts long texts at their beginning.*truncation_side"):
        encode_expanded(encoder, ["lay0"], [["tech0"]], FusionOptions(method="concatenate"))


@pytest.mark.parametrize("method", ["hyde", "concatenate", "rrf"])
def test_a_weight_without_effect_is_refused(method):
    with pytest.raises(ValueError, match=rf"expansion_weight 0.3 has no effect: method '{method}'"):
        FusionOptions(method=method, expansion_weight=0.3)
