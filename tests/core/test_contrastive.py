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

from expandr_core import encoder
from expandr_core.contrastive import (
    ContrastiveLoss,
    contrastive_loss,
    false_negatives,
    pair_numbers,
)
from expandr_core.fusion import Fusion
from expandr_core.options import EncodingOptions

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
    return contrastive_loss(queries, matrix.T, masked, temperature).item()


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
    loss = contrastive_loss(vectors, vectors, ~torch.eye(2, dtype=torch.bool), 0.02)
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
    assert false_negatives(query_ids, passage_ids, pairs).int().tolist() == expected


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = world.save_static(tmp_path_factory.mktemp("static") / "model")
    return encoder.load_retriever(folder, "cpu", EncodingOptions(max_tokens=32))


def batch_loss(
    model: Any, columns: list[list[str]], labels: list[list[int]], **options: Any
) -> float:
    """Loss of a batch of texts, as the trainer computes it."""
    pairs = torch.unique(torch.tensor([(row[0] << 31) + row[2] for row in labels]))
    settings = {"expanded": True, "fusion": Fusion(True), "contrastive_temperature": 0.1}
    loss = ContrastiveLoss(model, pairs, **(settings | options))
    features = [model.preprocess(texts) for texts in columns]
    with torch.no_grad():
        return loss(features, torch.tensor(labels)).item()


COLUMNS = [
    ["lay1 lay2", "lay3 lay4"],  # query
    ["tech1 tech2", "tech3 tech4"],  # positive
    ["tech1", "tech3"],  # expansion
    ["tech5 tech6", "tech6 tech7"],  # hard negative
]
LABELS = [[0, 1, 10, 12], [1, 1, 11, 13]]


def test_the_loss_is_that_of_the_encoders_own_vectors(tmp_path):
    folder = world.save_static(tmp_path / "model")
    for normalize, temperature in ((True, 0.1), (False, 3.0)):
        encoding = EncodingOptions(similarity="cosine" if normalize else "dot", max_tokens=32)
        own = encoder.Encoder(folder, "cpu", encoding)
        queries, _, expansions, _ = COLUMNS
        fused = encoder.encode_expanded(own, queries, [[text] for text in expansions], 0.5)
        positives, negatives = (own.encode_passages(COLUMNS[place]) for place in (1, 3))
        passages = torch.from_numpy(np.concatenate([positives, negatives]))
        expected = contrastive_loss(torch.from_numpy(fused), passages, NOTHING_MASKED, temperature)
        options = {"fusion": Fusion(normalize), "contrastive_temperature": temperature}
        found = batch_loss(own.model, COLUMNS, LABELS, **options)
        assert found == pytest.approx(expected.item(), abs=1e-5)


def test_normalisation_and_temperature_change_the_loss(model):
    losses = [
        batch_loss(
            model, COLUMNS, LABELS, fusion=Fusion(normalize), contrastive_temperature=temperature
        )
        for normalize in (True, False)
        for temperature in (0.1, 1.0)
    ]
    assert len({round(loss, 3) for loss in losses}) == 4


def test_an_empty_expansion_leaves_the_query_alone(model):
    query, positive, _, negative = COLUMNS
    without = [[label[0], 0, *label[2:]] for label in LABELS]
    alone = batch_loss(model, [query, positive, negative], without, expanded=False)
    assert batch_loss(model, COLUMNS, without) == pytest.approx(alone)
    assert batch_loss(model, COLUMNS, LABELS) != pytest.approx(alone)


def test_an_empty_place_costs_nothing_whatever_text_stands_in(model):
    others = COLUMNS[:3]
    empty = [[*label[:3], -1] for label in LABELS]
    labels = [label[:3] for label in LABELS]
    assert batch_loss(model, COLUMNS, empty) == pytest.approx(batch_loss(model, others, labels))
    assert batch_loss(model, COLUMNS, LABELS) > batch_loss(model, others, labels)
