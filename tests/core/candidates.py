"""Rewarded candidates for the tests of pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from expandr_core.preferences.rewards import Candidates, score


def judged(
    similarities: Sequence[tuple[float, float]],
    ties: Sequence[int] | None = None,
    rounding: float = 0,
    texts: Sequence[str] | None = None,
    **columns: Any,
) -> list[dict[str, Any]]:
    """Return rows of rewards.parquet for one query.

    Args:
        similarities: of each candidate to the positive and to the answer.
        ties: numbers that decide between equal candidates; by default their positions.
        rounding: similarities that differ by no more are equal.
        texts: of the candidates; by default "text 0", "text 1", ...
        columns: the same for all rows.
    """
    positive, answer = np.eye(2)
    candidates = Candidates(np.array(similarities), positive, answer, rounding)
    scores = score(candidates, list(ties or range(len(similarities))))
    shared = {"query_id": "q", "query": "why?", "finish_reason": "stop"} | columns
    return [
        {"sample": n, "text": texts[n] if texts else f"text {n}"} | shared | each
        for n, each in enumerate(scores)
    ]
