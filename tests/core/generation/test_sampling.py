"""Drawing tokens: the exact probabilities, the edges of the nucleus, and independent numbers."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest
from transformers import TopPLogitsWarper

from expandr_core.errors import DataError
from expandr_core.generation import sampling
from expandr_core.generation.sampling import Sampler

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0])
ROWS = 6000


def draw(logits: torch.Tensor, top_p: float, temperature: float = 1.0, position: int = 0, seed=0):
    """Draw a token for each row, with as many seeds."""
    rows = len(logits)
    seeds = range(seed, seed + rows)
    return Sampler(top_p).draw(logits, seeds, [position] * rows, [temperature] * rows)


def drawn(temperature: float, top_p: float, logits: torch.Tensor = LOGITS) -> np.ndarray:
    """Count the tokens of many seeds."""
    tokens = draw(logits.repeat(ROWS, 1), top_p, temperature)
    return np.bincount(tokens.numpy(), minlength=len(logits))


def nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """Return the exact probabilities, by sorting."""
    p = torch.softmax(logits.double() / temperature, 0).numpy()
    above = np.array([p[p > own].sum() for own in p])
    kept = np.where(above < top_p, p, 0)
    return kept / kept.sum()


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.9])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_tokens_are_drawn_with_the_probabilities_of_the_nucleus(temperature, top_p):
    expected = nucleus(LOGITS, temperature, top_p)
    kept = expected > 0
    counts = drawn(temperature, top_p)
    assert not counts[~kept].any()
    assert chisquare(counts[kept], expected[kept] * ROWS).pvalue > 0.01
    other = nucleus(LOGITS, temperature * 1.3, top_p)
    if top_p == 1:
        assert chisquare(counts, other * ROWS).pvalue < 1e-6  # it would be noticed


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_large_vocabulary_is_drawn_block_by_block_with_the_same_probabilities(top_p):
    """2,000 tokens in 4 blocks, the last not full; counted in bins of tokens of similar mass."""
    logits = 2 * torch.randn(2000, generator=torch.Generator().manual_seed(1))
    expected = nucleus(logits, 1.0, top_p)
    rows = 20_000
    tokens = draw(logits.expand(rows, -1), top_p).numpy()
    assert expected[tokens].all()
    bins = np.minimum((np.cumsum(expected) * 60).astype(int), 59)
    mass = np.bincount(bins, expected, 60)
    counts = np.bincount(bins[tokens], minlength=60)
    assert chisquare(counts[mass > 0], mass[mass > 0] * rows).pvalue > 0.01


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_the_nucleus_is_that_of_sorted_tokens(top_p):
    logits = 3 * torch.randn(300, 700, generator=torch.Generator().manual_seed(0))
    left_out = TopPLogitsWarper(top_p)(torch.zeros((300, 1), dtype=torch.long), logits).isinf()
    for seed in range(5):
        tokens = draw(logits, top_p, seed=1000 * seed)[:, None]
        assert not left_out.gather(1, tokens).any()
    assert left_out.gather(1, draw(logits, 1.0)[:, None]).any()


def test_the_nucleus_of_a_tiny_share_is_the_likeliest_token():
    assert drawn(1.0, 1e-6).tolist() == [ROWS, 0, 0, 0, 0, 0, 0]


def test_tokens_as_likely_as_the_last_of_the_nucleus_belong_to_it():
    """Half the mass are two tokens, a quarter each; then four of an eighth each."""
    logits = torch.tensor([0.25, 0.25, 0.125, 0.125, 0.125, 0.125]).log()
    for top_p, kept in ((0.2, 2), (0.49, 2), (0.51, 6), (0.9, 6)):
        counts = drawn(1.0, top_p, logits)
        expected = logits.double().exp().numpy()[:kept]
        assert not counts[kept:].any()
        assert chisquare(counts[:kept], expected / expected.sum() * ROWS).pvalue > 0.01


def test_temperature_zero_takes_the_first_of_the_likeliest_tokens():
    assert drawn(0.0, 0.5).tolist() == [ROWS, 0, 0, 0, 0, 0, 0]
    tied = torch.tensor([[0.0, 3.0, 1.0, 3.0]] * 4)
    assert Sampler(0.9).draw(tied, [1, 2, 3, 4], [0] * 4, [0.0] * 4).tolist() == [1] * 4


def test_a_draw_depends_on_its_row_alone(monkeypatch):
    logits = 3 * torch.randn(50, 1000, generator=torch.Generator().manual_seed(2))
    seeds, positions = [7 * n for n in range(50)], [n % 5 for n in range(50)]
    temperatures = [(0.0, 0.7, 1.0, 1.3)[n % 4] for n in range(50)]
    expected = Sampler(0.8).draw(logits, seeds, positions, temperatures).tolist()
    sampler = Sampler(0.8)
    alone = [
        sampler.draw(logits[[n]], [seeds[n]], [positions[n]], [temperatures[n]]).item()
        for n in range(50)
    ]
    assert alone == expected
    monkeypatch.setitem(sampling.WEIGHTS_AT_ONCE, "cpu", 3000)
    assert Sampler(0.8).draw(logits, seeds, positions, temperatures).tolist() == expected


def test_numbers_of_seeds_positions_and_attempts_are_uniform_and_independent():
    same = draw(LOGITS.repeat(ROWS, 1), 1.0, position=0) == draw(
        LOGITS.repeat(ROWS, 1), 1.0, position=1
    )
    p = torch.softmax(LOGITS.double(), 0)
    expected = float((p**2).sum())
    assert (
        abs(float(same.double().mean()) - expected) < 4 * (expected * (1 - expected) / ROWS) ** 0.5
    )
    counters = np.arange(20_000, dtype=np.uint64)
    one = np.zeros(20_000, np.uint64)
    for numbers in (
        sampling._uniforms(sampling._mix(counters, one), 0),
        sampling._uniforms(sampling._mix(one, counters), 0),
        sampling._uniforms(sampling._mix(counters, one), 1),
    ):
        assert kstest(numbers, "uniform").pvalue > 0.01
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03


def test_a_token_ruled_out_is_never_drawn_and_other_infinities_are_refused():
    logits = LOGITS.clone()
    logits[0] = -torch.inf
    counts = drawn(1.0, 1.0, logits)
    assert counts[0] == 0 and counts[1:].all()
    for wrong in (torch.nan, torch.inf):
        logits[0] = wrong
        with pytest.raises(DataError, match="logits are not finite"):
            drawn(1.0, 0.9, logits)


def test_logits_of_half_precision_are_drawn_with_their_own_probabilities():
    logits = LOGITS.bfloat16()
    counts = drawn(0.7, 0.9, logits)
    expected = nucleus(logits.float(), 0.7, 0.9)
    assert chisquare(counts[expected > 0], expected[expected > 0] * ROWS).pvalue > 0.01
