"""A pair whose product is above a limit is never left out because of its product in eight bits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expandr_core.retrieval.above import TOGETHER, above, above_again
from expandr_core.retrieval.products import multiplied
from expandr_core.retrieval.rounding import quantised


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
    rounded = quantised(passages, TOGETHER), quantised(queries)
    integers = multiplied(rounded[0].integers, rounded[1].integers)
    most = data.draw(st.sampled_from([1, 5, 70]))
    found = above_again(*rounded, integers, limits, most)
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
    rounded = quantised(passages, TOGETHER), quantised(queries)
    integers = multiplied(rounded[0].integers, rounded[1].integers)
    rows, columns, found = above_again(*rounded, integers, limits, 640)
    assert (rows.tolist(), columns.tolist()) == ([3], [100])
    assert abs(found.item() - 127 - 0.49 * 95) < 1e-3


def test_few_pairs_are_multiplied_again():
    """Those whose integers are too small are not: of random vectors, one in a hundred is above."""
    random = torch.Generator().manual_seed(0)
    passages, queries = (torch.randn(size, 96, generator=random) for size in (640, 100))
    limits = (passages @ queries.T).sort(dim=0).values[-4]
    passages[:, 0] = torch.nan  # what is multiplied again is seen
    clean = passages.nan_to_num(0)
    rounded = quantised(clean, TOGETHER)._replace(given=passages), quantised(queries)
    integers = multiplied(rounded[0].integers, rounded[1].integers)
    assert len(above_again(*rounded, integers, limits, 640)[0]) == 0
