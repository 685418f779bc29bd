"""The contrastive loss: worked by hand, laws, masks, and agreement with the encoder's fusion."""

from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import retriever_world as world
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from expandr_core.encoders.encode import Encoder, encode_expanded
from expandr_core.encoders.fusion import Fusion
from expandr_core.encoders.load import load_retriever
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.training.contrastive import (
    QUERIES_AT_ONCE,
    ContrastiveLoss,
    contrastive_loss,
    false_negatives,
    pair_numbers,
)
from expandr_core.training.grad_cache import GradCache

# exp(similarity) of two queries (rows) and four passages; the positives are on the diagonal
WORKED = [
    [4.0, 1.0, 2.0, 1.0],  # 4 / 8 = 1/2: ln 2
    [1.0, 2.0, 1.0, 4.0],  # 2 / 8 = 1/4: ln 4
]
NOTHING_MASKED = torch.zeros(2, 4, dtype=torch.bool)
numbers = st.floats(-5, 5, width=32)


def loss_of(similarities: Any, masked: torch.Tensor, temperature: float = 1.0) -> float:
    """Apply the loss to chosen similarities: the queries are unit vectors along the axes."""
    matrix = torch.as_tensor(similarities, dtype=torch.float64)
    queries = torch.eye(len(matrix), dtype=torch.float64)
    own = torch.arange(len(matrix))
    return contrastive_loss(queries, matrix.T, masked, own, temperature).item()


def test_the_loss_of_two_queries_and_four_passages_is_as_worked_by_hand():
    worked = torch.tensor(WORKED).double().log()
    assert loss_of(worked, NOTHING_MASKED) == pytest.approx((log(2) + log(4)) / 2)


def test_half_the_temperature_squares_the_exponentials():
    worked = torch.tensor(WORKED).double().log()
    # shares of the sums: 16 of 16 + 1 + 4 + 1, and 4 of 1 + 4 + 1 + 16
    expected = (log(22 / 16) + log(22 / 4)) / 2
    assert loss_of(worked, NOTHING_MASKED, temperature=0.5) == pytest.approx(expected)


def test_a_masked_passage_does_not_enter_the_sum():
    worked = torch.tensor(WORKED).double().log()
    masked = NOTHING_MASKED.clone()
    masked[1, 3] = True  # 2 / 4
    assert loss_of(worked, masked) == pytest.approx(log(2))


def test_a_query_without_negatives_costs_nothing_and_gives_finite_gradients():
    vectors = torch.ones(2, 3, requires_grad=True)
    others = ~torch.eye(2, dtype=torch.bool)
    loss = contrastive_loss(vectors, vectors, others, torch.arange(2), 0.02)
    loss.backward()
    assert loss.item() == 0
    assert vectors.grad is not None and not vectors.grad.any()


@given(st.integers(1, 6), st.integers(0, 6), numbers)
def test_equal_similarities_cost_ln_n(batch, hard_negatives, similarity):
    matrix = np.full((batch, batch + hard_negatives), similarity)
    masked = torch.zeros(matrix.shape, dtype=torch.bool)
    assert loss_of(matrix, masked) == pytest.approx(log(batch + hard_negatives), abs=1e-9)


@given(arrays(np.float64, (3, 5), elements=numbers), st.integers(0, 2), st.floats(0.125, 5))
def test_the_loss_falls_when_a_positive_rises(similarities, row, rise):
    masked = torch.zeros(3, 5, dtype=torch.bool)
    closer = similarities.copy()
    closer[row, row] += rise
    assert loss_of(closer, masked) < loss_of(similarities, masked)


def test_known_positives_and_empty_places_are_masked_and_nothing_else():
    query_ids = torch.tensor([0, 0, 1, 2])
    passage_ids = torch.tensor(
        [
            10,  # positive of query 0
            11,  # another positive of query 0, in a row of its own
            10,  # positive of query 1: the same passage as that of query 0
            12,  # positive of query 2
            13,  # hard negative: a positive of query 2 that is in no row
            14,  # hard negative, and of nobody a positive
            11,  # hard negative of query 1, a positive of query 0
            -1,  # an empty place
        ]
    )
    positives = [(0, 10), (0, 11), (1, 10), (2, 12), (2, 13)]
    pairs = pair_numbers(*torch.tensor(positives).T)
    expected = [
        [0, 1, 1, 0, 0, 0, 1, 1],
        [1, 0, 1, 0, 0, 0, 1, 1],
        [1, 0, 0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 0, 0, 1],
    ]
    own = torch.arange(4)
    assert false_negatives(query_ids, passage_ids, own, pairs).int().tolist() == expected


ROWS = [  # query, expansion, positive, hard negative
    ["lay1 lay2", "tech1", "tech1 tech2", "tech5 tech6"],
    ["lay3 lay4", "tech3", "tech3 tech4", "tech6 tech7"],
]
LABELS = [[0, 1, 10, 12], [1, 1, 11, 13]]


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.save_static(tmp_path_factory.mktemp("static") / "model")


def batch_loss(
    folder: Path,
    rows: list[list[str | None]],
    labels: list[list[int]],
    normalize: bool = True,
    temperature: float = 0.1,
) -> float:
    """Loss of a batch of texts, as the trainer computes it."""
    model = load_retriever(folder, "cpu", EncodingOptions(max_tokens=32))
    mini_batches = GradCache(model, "float32", 100)
    texts = mini_batches.tokenise(rows, len(rows[0]))
    vectors = mini_batches.arrange(mini_batches.embed(texts, seed=0), texts.positions)
    pairs = torch.unique(torch.tensor([(row[0] << 31) + row[2] for row in labels]))
    loss = ContrastiveLoss(pairs, Fusion(normalize), temperature)
    return loss.with_gradient(vectors, torch.tensor(labels))[0].item()


def test_the_loss_is_that_of_the_encoders_own_vectors(static):
    for normalize, temperature in ((True, 0.1), (False, 3.0)):
        encoding = EncodingOptions(similarity="cosine" if normalize else "dot", max_tokens=32)
        own = Encoder(static, "cpu", encoding)
        queries, expansions, positives, negatives = zip(*ROWS, strict=True)
        each = [[text] for text in expansions]
        fused = encode_expanded(own, list(queries), each, FusionOptions())
        passages = torch.from_numpy(own.encode_passages([*positives, *negatives]))
        expected = contrastive_loss(
            torch.from_numpy(fused), passages, NOTHING_MASKED, torch.arange(2), temperature
        )
        found = batch_loss(static, ROWS, LABELS, normalize, temperature)
        assert found == pytest.approx(expected.item(), abs=1e-5)


def test_normalisation_and_temperature_change_the_loss(static):
    losses = [
        batch_loss(static, ROWS, LABELS, normalize, temperature)
        for normalize in (True, False)
        for temperature in (0.1, 1.0)
    ]
    assert len({round(loss, 3) for loss in losses}) == 4


def test_without_an_expansion_the_query_stands_alone(static):
    expanded = [[query, query, *rest] for query, _, *rest in ROWS]  # the mean of equal vectors
    alone = [[query, None, *rest] for query, _, *rest in ROWS]
    without = [[query, -1, *rest] for query, _, *rest in LABELS]
    assert batch_loss(static, alone, without) == pytest.approx(batch_loss(static, expanded, LABELS))
    assert batch_loss(static, ROWS, LABELS) != pytest.approx(batch_loss(static, alone, without))


def test_an_empty_place_costs_nothing(static):
    empty = [[*row[:3], None] for row in ROWS]
    found = batch_loss(static, empty, [[*label[:3], -1] for label in LABELS])
    fewer = batch_loss(static, [row[:3] for row in ROWS], [label[:3] for label in LABELS])
    assert found == pytest.approx(fewer)
    assert batch_loss(static, ROWS, LABELS) > fewer


@pytest.mark.parametrize("rows", [3, QUERIES_AT_ONCE, QUERIES_AT_ONCE * 2 + 5])
def test_blocks_of_queries_give_the_loss_and_gradient_of_the_whole_matrix(rows):
    vectors = torch.randn(rows, 4, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(rows * 4).reshape(rows, 4)
    labels[::3, 1] = -1  # no expansion
    labels[::5, 3] = -1  # no hard negative
    pairs = torch.sort(pair_numbers(labels[:, 0], labels[:, 2])).values
    found = ContrastiveLoss(pairs, Fusion(True), 0.1).with_gradient(vectors, labels)

    leaf = vectors.clone().requires_grad_()
    unit = torch.nn.functional.normalize(leaf, dim=2)
    fused = torch.nn.functional.normalize(unit[:, 0] + unit[:, 1], dim=1)
    queries = torch.where((labels[:, 1] < 0)[:, None], unit[:, 0], fused)
    similarities = queries @ torch.cat([unit[:, 2], unit[:, 3]]).T / 0.1
    empty = torch.cat([labels[:, 2], labels[:, 3]]) < 0
    similarities = similarities.masked_fill(empty, -torch.inf)
    expected = torch.nn.functional.cross_entropy(similarities, torch.arange(rows))
    expected.backward()
    torch.testing.assert_close(found, (expected.detach(), leaf.grad), rtol=1e-4, atol=1e-7)


# Mini-batches


def save_without_dropout(folder: Path) -> Path:
    return world.save_bert(folder, dropout=0.0)


TEXTS: list[list[str | None]] = [
    ["lay1 lay2 lay3", None, "tech1 tech2", "tech5"],
    ["lay3", "tech3 tech4 tech5 tech6", "tech3 tech4", None],
    ["tech1 tech2", "tech1 tech2", "tech1 tech2", "tech6 tech7"],
    ["lay1 lay2 lay3", "tech6", "tech1 tech2", "tech0 tech1 tech2"],
]


def gradients(folder: Path, mini_batch_size: int, small: int | None = None) -> dict[str, Any]:
    """Propagate the sum of all vectors, each times a number of its own, back to the weights."""
    model = load_retriever(folder, "cpu", EncodingOptions(max_tokens=32))
    model.train()
    mini_batches = GradCache(model, "float32", mini_batch_size)
    mini_batches.texts_at_once = small or mini_batches.texts_at_once
    texts = mini_batches.tokenise(TEXTS, 4)
    embedded = mini_batches.embed(texts, seed=3)
    vectors = mini_batches.arrange(embedded, texts.positions)
    gradient = torch.arange(1, vectors.numel() + 1).reshape(vectors.shape) / vectors.numel()
    mini_batches.backward(texts, embedded, gradient, seed=3)
    trained = model.named_parameters()
    found = {name: each.grad for name, each in trained if each.grad is not None}
    return {"vectors": vectors, **found}


def test_a_text_is_embedded_once_and_the_longest_come_first(static):
    model = load_retriever(static, "cpu", EncodingOptions(max_tokens=32))
    mini_batches = GradCache(model, "float32", 3)
    texts = mini_batches.tokenise(TEXTS, 4)
    # three queries; seven passages, one of which is also a query
    assert [(each.kind, each.size) for each in texts.mini_batches] == [
        ("query", 3), ("document", 3), ("document", 3), ("document", 1),
    ]  # fmt: skip
    assert texts.positions.tolist() == [[0, -1, 5, 8], [2, 3, 6, -1], [1, 5, 5, 7], [0, 9, 5, 4]]


@pytest.mark.parametrize("save", [save_without_dropout, world.save_bert, world.save_static])
def test_activations_that_are_not_kept_change_neither_vectors_nor_gradients(tmp_path, save):
    folder = save(tmp_path / "model")
    kept = gradients(folder, mini_batch_size=100, small=3)
    for mini_batch_size in (3, 6):  # the first one or two of four mini-batches are kept
        torch.testing.assert_close(gradients(folder, mini_batch_size, small=3), kept)


def test_the_size_of_mini_batches_changes_neither_vectors_nor_gradients(tmp_path):
    folder = save_without_dropout(tmp_path / "model")
    whole = gradients(folder, mini_batch_size=100)
    for size in (1, 4):
        torch.testing.assert_close(gradients(folder, size), whole, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_autograd_over_the_whole_batch(tmp_path):
    folder = save_without_dropout(tmp_path / "model")
    found = gradients(folder, mini_batch_size=2)
    model = load_retriever(folder, "cpu", EncodingOptions(max_tokens=32))
    columns = []
    for column in zip(*TEXTS, strict=True):
        there = [text or "" for text in column]
        vectors = model(model.preprocess(there))["sentence_embedding"]
        columns.append(vectors * torch.tensor([[float(text is not None)] for text in column]))
    vectors = torch.stack(columns, dim=1)
    gradient = torch.arange(1, vectors.numel() + 1).reshape(vectors.shape) / vectors.numel()
    (vectors * gradient).sum().backward()
    expected = {name: each.grad for name, each in model.named_parameters() if name in found}
    torch.testing.assert_close(
        found, {"vectors": vectors.detach(), **expected}, rtol=1e-4, atol=1e-5
    )


def test_queries_and_passages_get_the_models_own_prompts_in_training(tmp_path):
    """As `encode_query` and `encode_document`, whose prompts a model's folder names."""
    folder = save_without_dropout(tmp_path / "model")
    model = load_retriever(folder, "cpu", EncodingOptions(max_tokens=32))
    model.prompts = {"query": "lay7 ", "passage": "tech7 tech7 "}
    model.set_pooling_include_prompt(False)  # changes the mask in place
    model.train()
    mini_batches = GradCache(model, "float32", 1)
    texts = mini_batches.tokenise(TEXTS[:1], 4)
    found = mini_batches.arrange(mini_batches.embed(texts, seed=0), texts.positions)[0]
    again = mini_batches.arrange(mini_batches.embed(texts, seed=0), texts.positions)[0]
    expected = [
        model.encode_query("lay1 lay2 lay3"),
        np.zeros(16, dtype=np.float32),
        *model.encode_document(["tech1 tech2", "tech5"]),
    ]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-6)
    torch.testing.assert_close(again, found)


def test_bfloat16_is_close_and_gives_vectors_of_float32(tmp_path):
    folder = save_without_dropout(tmp_path / "model")
    model = load_retriever(folder, "cpu", EncodingOptions(max_tokens=32))
    exact, coarse = (
        GradCache(model, precision, 100).encode(["tech1 tech2", "tech3"], "document")
        for precision in ("float32", "bfloat16")
    )
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(coarse, exact)
