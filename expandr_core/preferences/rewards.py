"""The reward of ExpandR: how near an expansion is to the positive and to the answer, as ranks.

    retriever reward = 1 / rank by similarity to the positive passage
    self-reward      = 1 / rank by similarity to the LLM's answer
    reward           = their sum, between 2/n and 2

The ranks are among the n candidates of one query, so the mean of 1/rank over the candidates is a
constant, whatever the LLM writes: measure progress by similarity or by retrieval, not by the reward.

To add a component, write a function from `Candidates` to `Scores`, name it `<NAME>_reward`, and add it
to COMPONENTS. The reward stage writes every component and their sum; pairs and audit read the result.

Ties (the reference's unstable sort favoured its first temperature): equal similarities share the better
rank; equal rewards go to the larger summed similarity, then to a seeded hash. Similarities that differ
by no more than the encoder's rounding are equal.
"""

from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expandr_core.records import REWARDS
from expandr_core.seeding import derive_seed

Floats = NDArray[np.floating]


class Candidates(NamedTuple):
    """The candidates of one query, as the components see them.

    Attributes:
        vectors: (candidates, dimensions)
        positive: (dimensions,) vector of the positive passage.
        answer: (dimensions,) vector of the LLM's answer.
        rounding: similarities that differ by no more are equal.
    """

    vectors: Floats
    positive: Floats
    answer: Floats
    rounding: float = 0


class Scores(NamedTuple):
    """A component's opinion of the candidates; both are (candidates,), and more is better."""

    similarity: Floats
    reward: Floats


def ranks(similarities: Floats, rounding: float = 0) -> NDArray[np.int64]:
    """Rank the candidates of one query, 1 for the most similar; equal ones share the better rank.

    Args:
        similarities: (candidates,), in any unit.
        rounding: similarities that differ by no more are equal.

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


def retriever_reward(candidates: Candidates) -> Scores:
    """Rank by similarity to the positive passage."""
    similarity = candidates.vectors @ candidates.positive
    return Scores(similarity, 1 / ranks(similarity, candidates.rounding))


def self_reward(candidates: Candidates) -> Scores:
    """Rank by similarity to the LLM's answer."""
    similarity = candidates.vectors @ candidates.answer
    return Scores(similarity, 1 / ranks(similarity, candidates.rounding))


COMPONENTS = (retriever_reward, self_reward)
by_preference = itemgetter("reward", "similarity", "tie")  # the key that sorts the best row last


def names() -> list[str]:
    """Return the names of the components.

    >>> names()
    ['retriever', 'self']
    """
    return [component.__name__.removesuffix("_reward") for component in COMPONENTS]


def schema() -> pa.Schema:
    """Return the schema of rewards.parquet: REWARDS, and two columns for each component."""
    return pa.schema(
        [
            *REWARDS,
            *((f"{name}_similarity", pa.float32()) for name in names()),
            *((f"{name}_reward", pa.float64()) for name in names()),
        ]
    )


def score(candidates: Candidates, ties: list[int]) -> list[dict[str, Any]]:
    """Judge the candidates of one query; return the columns of each.

    Args:
        candidates: what was written for the query.
        ties: a number for each candidate that depends on its text, not on its position.

    Returns:
        For each candidate similarity and reward of every component; `similarity` and `reward`, their
        sums; `tie`; and `apart`: whether any component tells it from the query's best candidate.
    """
    scores = [component(candidates) for component in COMPONENTS]
    columns: dict[str, Any] = {"tie": ties}
    for name, each in zip(names(), scores, strict=True):
        columns |= {f"{name}_similarity": each.similarity, f"{name}_reward": each.reward}
    columns["similarity"] = np.sum([each.similarity.astype(np.float64) for each in scores], axis=0)
    columns["reward"] = np.sum([each.reward for each in scores], axis=0)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    best = max(rows, key=by_preference)
    for row in rows:
        gaps = (
            abs(float(row[f"{n}_similarity"]) - float(best[f"{n}_similarity"])) for n in names()
        )
        row["apart"] = max(gaps) > candidates.rounding
    return rows


def tie_seed(seed: int, query_id: str, text: str) -> int:
    """Derive the number that breaks a tie from the text itself, so that order cannot matter."""
    return derive_seed("tie", seed, query_id, text)
