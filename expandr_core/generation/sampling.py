"""Draw the next token of each text, from its probabilities and one uniform number.

The number is a hash of the text's seed and the token's position, so a draw depends neither on the batch
nor on the device: SplitMix64's mixing (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number
generators") used as a counter-based generator. The token is the inverse of the cumulative distribution
there, found in two steps, a block of tokens and the token in it, so that only one block is summed up.

The nucleus (Holtzman et al., 2020) is not sorted: a token belongs to it if the tokens more probable than
it have less than `top_p` together. A token outside is discarded with all that are not more probable,
which are outside too, and the next number draws from the rest: the same law, that of the nucleus.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from expandr_core.errors import DataError
from expandr_core.generation.engine import NOT_FINITE

BLOCK = 512  # tokens
WEIGHTS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}  # on a CPU, as many as its cache holds
_GAMMA = np.uint64(0x9E3779B97F4A7C15)


class Sampler:
    """Draws tokens in one nucleus, in memory that it uses again."""

    def __init__(self, top_p: float):
        self.top_p = top_p
        self._weights = torch.empty(0, 0)

    def draw(
        self,
        logits: torch.Tensor,
        seeds: Sequence[int],
        positions: Sequence[int],
        temperatures: Sequence[float],
    ) -> torch.Tensor:
        """Draw a token for each row.

        Args:
            logits: (rows, vocabulary), of any floating type.
            seeds: (rows,), in [0, 2^64).
            positions: (rows,), of the tokens in their texts.
            temperatures: (rows,); 0 takes the likeliest token, of several the first.

        Returns:
            (rows,), int64.

        Raises:
            DataError: if the logits of a row are not finite (minus infinity rules a token out).
        """
        vocabulary = logits.shape[1]
        at_once = max(1, WEIGHTS_AT_ONCE[logits.device.type] // vocabulary)
        tokens = []
        for first in range(0, len(logits), at_once):
            rows = slice(first, first + at_once)
            temperature = np.array(temperatures[rows], np.float32)
            states = _mix(np.array(seeds[rows], np.uint64), np.array(positions[rows], np.uint64))
            weights = self._weigh(logits[rows], np.where(temperature == 0, 1, temperature))
            drawn = self._draw(weights, states)
            if greedy := np.flatnonzero(temperature == 0).tolist():
                drawn[greedy] = logits[rows][greedy].argmax(-1)
            tokens.append(drawn)
        return torch.cat(tokens)

    def _weigh(self, logits: torch.Tensor, temperature: NDArray[np.float32]) -> torch.Tensor:
        """Return the probabilities, (rows, tokens), with 0 beyond the vocabulary."""
        rows, vocabulary = logits.shape
        width = -(-vocabulary // BLOCK) * BLOCK
        if self._weights.shape[0] < rows or self._weights.shape[1] != width:
            self._weights = torch.zeros((rows, width), device=logits.device)
            self._scaled = torch.empty((rows, vocabulary), device=logits.device)
        divisor = torch.from_numpy(temperature).to(logits.device)[:, None]
        scaled = self._scaled[:rows].copy_(logits).div_(divisor)
        torch.softmax(scaled, -1, out=self._weights[:rows, :vocabulary])
        return self._weights[:rows]

    def _draw(self, weights: torch.Tensor, states: NDArray[np.uint64]) -> torch.Tensor:
        tokens = torch.empty(len(weights), dtype=torch.long, device=weights.device)
        rows = torch.arange(len(weights), device=weights.device)  # still to be drawn
        limit: torch.Tensor | None = None  # of the mass above a token in the nucleus, (rows, 1)
        attempt = 0
        while len(rows):
            sums = weights.view(len(weights), -1, BLOCK).sum(-1).double().cumsum(-1)
            total = sums[:, -1:]
            if not attempt and not total.isfinite().all():
                raise DataError(NOT_FINITE)
            uniforms = torch.from_numpy(_uniforms(states, attempt)).to(weights.device)[:, None]
            drawn = _invert(weights, sums, uniforms)  # (rows, 1)
            tokens[rows] = drawn[:, 0]
            if self.top_p == 1:
                break
            limit = total * self.top_p if limit is None else limit
            likelier = torch.empty_like(weights)  # (rows, tokens), 0 for the others; many times as
            torch.gt(weights, weights.gather(1, drawn), out=likelier).mul_(
                weights
            )  # fast as `where`
            outside = (likelier.sum(-1, keepdim=True) >= limit)[:, 0]
            weights, rows, limit = likelier[outside], rows[outside], limit[outside]
            states, attempt = states[outside.cpu().numpy()], attempt + 1
        return tokens


def _invert(weights: torch.Tensor, sums: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return the tokens at which the cumulative weights exceed these shares of the total, (rows, 1).

    Args:
        weights: (rows, tokens).
        sums: (rows, blocks), cumulative.
        uniforms: (rows, 1), in [0, 1).
    """
    wanted = uniforms * sums[:, -1:]
    block = torch.searchsorted(sums, wanted, right=True)
    end = sums.gather(1, block)
    begin = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0)
    share = ((wanted - begin) / (end - begin)).clamp(max=1 - 2**-52)  # of the block
    blocks = weights.view(len(weights), -1, BLOCK)
    inside = blocks[torch.arange(len(weights), device=weights.device), block[:, 0]]
    inside = inside.double().cumsum(-1)
    return block * BLOCK + torch.searchsorted(inside, share * inside[:, -1:], right=True)


def _uniforms(states: NDArray[np.uint64], attempt: int) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1), multiples of 2^-52."""
    bits = _mix(states, np.array([attempt], np.uint64)) >> np.uint64(12)
    return bits.astype(np.float64) * 2.0**-52


def _mix(states: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the hash of each state with a counter.

    >>> [hex(state) for state in _mix(np.zeros(2, np.uint64), np.arange(2, dtype=np.uint64)).tolist()]
    ['0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4']
    """
    mixed = states + _GAMMA * (counters + np.uint64(1))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
