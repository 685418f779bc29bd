"""A pair whose product is above a limit is never left out because of its product in eight bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expandr_core.retrieval import above as above_module
from expandr_core.retrieval.above import above, above_again
from expandr_core.retrieval.index import expect_sparse
from expandr_core.retrieval.products import integers_are_exact
from expandr_core.retrieval.rounding import above_zero, quantised_passages, quantised_queries

expect_sparse()
pytestmark = pytest.mark.skipif(not integers_are_exact(), reason="this processor has no VNNI")


@settings(deadline=None)
@given(st.data())
def test_pairs_above_a_limit_are_all_found(data):
    """Vectors may be tiny or huge, next to each other, and limits anywhere between products."""
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    dimensions = data.draw(st.integers(1, 40))
    sizes = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 20))
    smallest, largest = data.draw(
        st.sampled_from([(0, 1), (-3, 3), (-25, 0), (-30, 15), (-45, -20)])
    )
    passages, queries = (
        torch.from_numpy(
            random.normal(size=(size, dimensions))
            * 10.0 ** random.uniform(smallest, largest, (size, 1))
        ).float()
        for size in sizes
    )
    products = passages @ queries.T
    rank = data.draw(st.integers(0, sizes[0] - 1))
    limits = products.sort(dim=0, descending=True).values[rank].clone()
    if data.draw(st.booleans()):
        limits[0] = -torch.inf
    rounded = quantised_passages(passages), quantised_queries(queries)
    most = data.draw(st.sampled_from([1, 5, 70]))
    found = above_again(*rounded, limits, most)
    wanted = above(products, limits, most)
    lengths = [np.linalg.norm(each.double(), axis=1) for each in (passages, queries)]
    errors = lengths[0].max() * lengths[1] * 1e-5 + 1e-36
    for query in range(sizes[1]):
        own, expected = (
            np.sort(each[2][each[0] == query].numpy())[::-1] for each in (found, wanted)
        )
        clear = expected > limits[query].item() + errors[query]
        assert len(own) >= clear.sum()
        assert (np.abs(own[: clear.sum()] - expected[clear]) <= errors[query]).all()


@pytest.mark.parametrize("lossy", ["passage", "query"])
def test_a_product_whose_losses_add_up_is_found(lossy):
    """Each component but one is rounded to zero, so that the bound is nearly reached."""
    random = torch.Generator().manual_seed(0)
    passages, queries = (torch.randn(size, 96, generator=random) / 1000 for size in (640, 10))
    lost = torch.full((96,), 0.49)
    lost[0] = 127
    passages[100], queries[3] = (
        (lost, torch.ones(96)) if lossy == "passage" else (torch.ones(96), lost)
    )
    limits = torch.full((10,), 1e6)
    limits[3] = 127 + 0.489 * 95
    rounded = quantised_passages(passages), quantised_queries(queries)
    rows, columns, found = above_again(*rounded, limits, 640)
    assert (rows.tolist(), columns.tolist()) == ([3], [100])
    assert abs(found.item() - 127 - 0.49 * 95) < 1e-3


def test_few_pairs_are_multiplied_again():
    """Of random vectors, those whose integers are too small are not."""
    random = torch.Generator().manual_seed(0)
    passages, queries = (torch.randn(size, 96, generator=random) for size in (640, 100))
    limits = (passages @ queries.T).sort(dim=0).values[-4:-2].mean(0)
    rounded = quantised_passages(passages), quantised_queries(queries)
    pairs = above_module._possible(*rounded, limits)
    assert pairs is not None
    assert 300 <= len(pairs[0]) < 0.05 * 640 * 100
    rows, columns, found = above_again(*rounded, limits, 640)
    assert torch.bincount(rows).tolist() == [3] * 100
    assert torch.allclose(found, (passages @ queries.T)[columns, rows])


@settings(deadline=None)
@given(
    st.integers(0, 1 << 30), st.sampled_from([1, 3, 96, 1100, 4096]), st.sampled_from([0, 6, 25])
)
def test_a_pair_barely_above_its_limit_is_possible(seed, dimensions, spread):
    """The limit is the next number below its product; half of the time nearly nothing is rounded."""
    random = np.random.default_rng(seed)
    sides = [random.normal(size=(size, dimensions)) for size in (100, 7)]
    if random.integers(0, 2):
        sides = [np.rint(127 * each / np.abs(each).max(axis=1, keepdims=True)) for each in sides]
    sides = [each * 10.0 ** -random.uniform(0, spread + 1e-9, (len(each), 1)) for each in sides]
    passages, queries = (torch.from_numpy(each).float() for each in sides)
    exact = (passages.double() @ queries.double().T).numpy()
    chosen = random.integers(0, len(passages), len(queries))
    limits = exact[chosen, np.arange(len(queries))].astype(np.float32)
    limits = torch.from_numpy(np.nextafter(limits, np.float32(-np.inf)))
    rounded = quantised_passages(passages), quantised_queries(queries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(above_module, "_MOST_PAIRS", 1.0)
        pairs = above_module._possible(*rounded, limits)
    assert pairs is not None
    found = set(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))
    assert found >= set(enumerate(chosen.tolist()))


def test_offsets_are_numbers_where_lengths_overflow(monkeypatch):
    """Processors differ in what they make of other ones."""

    def compare(passages, queries, offsets):
        assert offsets.isfinite().all()
        return above_zero(passages, queries, offsets)

    monkeypatch.setattr(above_module, "above_zero", compare)
    passages = torch.linspace(-1e-21, 1e-21, 40)[:, None] * torch.ones(8)
    queries = torch.full((3, 8), 1e21)
    rows, columns, _ = above_again(
        quantised_passages(passages), quantised_queries(queries), torch.full((3,), 7.0), 40
    )
    assert sorted(columns[rows == 1].tolist()) == [37, 38, 39]
