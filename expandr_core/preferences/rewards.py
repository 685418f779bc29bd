"""The reward of ExpandR: how near an expansion is to the positive and to the answer, as ranks.

    retriever reward = 1 / rank by similarity to the positive passage
    self-reward      = 1 / rank by similarity to the LLM's own answer
    reward           = their sum, between 2/n and 2

The ranks are among the n candidates of one query. The mean of 1/rank over the candidates is therefore
a constant, whatever the LLM writes; progress is measured by similarity or by retrieval, not by it.

Ties (the reference's order of an unstable sort favoured its first temperature): equal similarities
share the better rank; equal rewards go to the larger summed similarity, then to a seeded hash. What
differs by no more than the rounding of its encoder is equal.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expandr_core.seeding import derive_seed

Floats = NDArray[np.floating]


def ranks(similarities: Floats, rounding: float = 0) -> NDArray[np.int64]:
    """Rank the candidates of one query, 1 for the most similar; equal ones share the better rank.

    Args:
        similarities: (candidates,), any unit in which more is nearer.
        rounding: a difference that is no larger is none.

    Raises:
        ValueError: if a similarity is not finite.

    >>> ranks(np.array([0.2, 0.9, 0.9, 0.1])).tolist()
    [3, 1, 1, 4]
    >>> ranks(np.array([0.2, 0.9, 0.9001, 0.1]), rounding=0.001).tolist()
    [3, 1, 1, 4]
    """
    if not np.isfinite(similarities).all():
        raise ValueError(f"similarities must be finite, got {similarities}")
    exact = similarities.astype(np.float64)
    better = exact[None, :] - exact[:, None] > rounding  # (candidates, candidates)
    return 1 + better.sum(axis=1)


def rewards(to_positive: Floats, to_answer: Floats, rounding: float = 0) -> NDArray[np.float64]:
    """Sum the reciprocal ranks by similarity to the positive and to the answer.

    Args:
        to_positive: (candidates,) similarity to the positive passage.
        to_answer: (candidates,) similarity to the LLM's answer.
        rounding: of the similarities, see `ranks`.

    >>> rewards(np.array([0.9, 0.5, 0.1]), np.array([0.3, 0.8, 0.1])).round(2).tolist()
    [1.5, 1.5, 0.67]
    """
    return 1.0 / ranks(to_positive, rounding) + 1.0 / ranks(to_answer, rounding)


@dataclass(frozen=True)
class Choice:
    """Positions of the two texts of a preference pair among the candidates, and their difference."""

    chosen: int
    rejected: int
    margin: float


def choose_pair(
    to_positive: Floats, to_answer: Floats, tie_seeds: list[int], rounding: float = 0
) -> Choice | None:
    """Choose the best and the worst candidate of one query; None if there are not two.

    Two that differ in neither similarity by more than the rounding have no margin, even if another
    candidate stands between them.

    Args:
        to_positive: (candidates,) similarity to the positive passage.
        to_answer: (candidates,) similarity to the LLM's answer.
        tie_seeds: a number per candidate that belongs to it and not to its position.
        rounding: of the similarities, see `ranks`.

    >>> choose_pair(np.array([0.9, 0.5, 0.1]), np.array([0.3, 0.8, 0.1]), [0, 1, 2])
    Choice(chosen=1, rejected=2, margin=0.8333333333333334)
    """
    if len(tie_seeds) < 2:
        return None
    reward = rewards(to_positive, to_answer, rounding)
    order = sorted(
        range(len(tie_seeds)),
        key=lambda k: (reward[k], float(to_positive[k]) + float(to_answer[k]), tie_seeds[k]),
    )
    best, worst = order[-1], order[0]
    apart = max(abs(float(each[best]) - float(each[worst])) for each in (to_positive, to_answer))
    margin = float(reward[best] - reward[worst]) if apart > rounding else 0.0
    return Choice(best, worst, margin)


def tie_seed(seed: int, query_id: str, text: str) -> int:
    """Derive the number that breaks a tie from the text itself, so that order cannot matter."""
    return derive_seed("tie", seed, query_id, text)
