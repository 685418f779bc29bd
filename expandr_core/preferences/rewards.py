"""The reward of ExpandR: how near an expansion is to the positive and to the answer, as ranks.

    retriever reward = 1 / rank by similarity to the positive passage
    self-reward      = 1 / rank by similarity to the LLM's answer
    reward           = their weighted sum; with the weights 1 and 1, between 2/n and 2

The ranks are among the n candidates of one query, so the mean of 1/rank over the candidates is a
constant, whatever the LLM writes: measure progress by similarity or by retrieval, not by the reward.
The other retriever rewards (`Gains`) measure retrieval itself, so their mean does tell progress.

To add a component, write a function from `Candidates` to `Scores`, name it `<NAME>_reward`, and add it
to COMPONENTS. The reward stage writes every component and their sum; pairs and audit read the result.

Ties (the reference's unstable sort favoured its first temperature): equal similarities share the better
rank; equal rewards go to the larger summed similarity, then to a seeded hash. Similarities that differ
by no more than the encoder's rounding are equal. A component without weight decides nothing.
"""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from expandr_core.encoders.encode import unit
from expandr_core.options.preferences import Reward
from expandr_core.records import REWARDS
from expandr_core.seeding import derive_seed

Floats = NDArray[np.floating]
EQUAL: Mapping[str, float] = {}  # weights of the components; 1 if not named
MEASURED = pa.schema(  # columns if retrieval is measured: by the expanded query, by the query alone
    [
        ("retrieval", pa.float64()),
        ("query_retrieval", pa.float64()),
        ("beats_query", pa.bool_()),
    ]
)


class Gains(NamedTuple):
    """Rewards of the retriever that are measured by retrieval, not by ranks among the candidates.

    Attributes:
        reward: (candidates,)
        apart: (candidates, candidates) whether two differ by more than rounding.
    """

    reward: Floats
    apart: NDArray[np.bool_]


class Retrieval(NamedTuple):
    """How well the positives are found by a query fused with each candidate, and by it alone.

    Attributes:
        expanded: (candidates,) in the unit of the reward: cosine, 1/rank or nDCG.
        alone: by the query alone.
        vectors: (candidates, dimensions) of the fused queries.
    """

    expanded: Floats
    alone: float
    vectors: Floats

    def gains(self, reward: Reward, rounding: float) -> Gains:
        """Return the retriever's rewards.

        Cosines are told apart as all similarities are. Ranks differ by more than rounding if the
        vectors that they are of do.

        Args:
            reward: its kind, not candidate_rank.
            rounding: of a vector, relative to its length.
        """
        gain = self.expanded if reward == "corpus_rank" else self.expanded - self.alone
        compared = self.expanded[:, None] if reward == "similarity" else unit(self.vectors)
        return Gains(gain, np.linalg.norm(compared[:, None] - compared[None, :], axis=2) > rounding)

    def columns(self, reward: Reward, rounding: float) -> list[dict[str, Any]]:
        """Return the columns of MEASURED for each candidate; what beats must do so beyond rounding."""
        least = rounding if reward in ("candidate_rank", "similarity") else 0.0
        return [
            {
                "retrieval": float(each),
                "query_retrieval": float(self.alone),
                "beats_query": bool(each - self.alone > least),
            }
            for each in self.expanded
        ]


class Candidates(NamedTuple):
    """The candidates of one query, as the components see them.

    Attributes:
        vectors: (candidates, dimensions)
        positive: (dimensions,) vector of the positive passage.
        answer: (dimensions,) vector of the LLM's answer, or None if the reward needs none.
        rounding: similarities that differ by no more are equal.
        gains: the retriever's rewards, if they are not ranks among the candidates.
    """

    vectors: Floats
    positive: Floats
    answer: Floats | None
    rounding: float = 0
    gains: Gains | None = None


class Scores(NamedTuple):
    """A component's opinion of the candidates: more is better.

    Attributes:
        similarity: (candidates,)
        reward: (candidates,)
        apart: (candidates, candidates) whether it tells two apart; by default, if their similarities
            differ by more than rounding.
    """

    similarity: Floats
    reward: Floats
    apart: NDArray[np.bool_] | None = None


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
    """Rank by similarity to the positive passage, unless the rewards are measured otherwise."""
    similarity = candidates.vectors @ candidates.positive
    if candidates.gains:
        return Scores(similarity, *candidates.gains)
    return Scores(similarity, 1 / ranks(similarity, candidates.rounding))


def self_reward(candidates: Candidates) -> Scores | None:
    """Rank by similarity to the LLM's answer; without an answer, have no opinion."""
    if candidates.answer is None:
        return None
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


def schema(measured: bool = False) -> pa.Schema:
    """Return the schema of rewards.parquet: REWARDS, two columns for each component, and MEASURED.

    Args:
        measured: whether retrieval was measured.
    """
    return pa.schema(
        [
            *REWARDS,
            *((f"{name}_similarity", pa.float32()) for name in names()),
            *((f"{name}_reward", pa.float64()) for name in names()),
            *(MEASURED if measured else ()),
        ]
    )


def score(
    candidates: Candidates, ties: list[int], weights: Mapping[str, float] = EQUAL
) -> list[dict[str, Any]]:
    """Judge the candidates of one query; return the columns of each.

    Args:
        candidates: what was written for the query.
        ties: a number for each candidate that depends on its text, not on its position.
        weights: of the components by name; 1 if not named. One without an opinion must have 0.

    Returns:
        For each candidate similarity and reward of every component (None if it has no opinion);
        `similarity` and `reward`, their weighted sums; `tie`; and `apart`: whether any component with
        a weight tells it from the query's best candidate.
    """
    columns: dict[str, Any] = {"tie": ties}
    weighted: list[tuple[float, Scores]] = []
    for name, component in zip(names(), COMPONENTS, strict=True):
        scores, weight = component(candidates), weights.get(name, 1)
        similarity, reward = scores[:2] if scores else ([None] * len(ties),) * 2
        columns |= {f"{name}_similarity": similarity, f"{name}_reward": reward}
        if weight:
            assert scores is not None, f"the component {name} has a weight and no opinion"
            weighted.append((weight, scores))
    columns["similarity"] = np.sum(
        [weight * each.similarity.astype(np.float64) for weight, each in weighted], axis=0
    )
    columns["reward"] = np.sum([weight * each.reward for weight, each in weighted], axis=0)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    best = max(range(len(rows)), key=lambda place: by_preference(rows[place]))
    apart = np.any([_apart(each, best, candidates.rounding) for _, each in weighted], axis=0)
    for row, told in zip(rows, apart.tolist(), strict=True):
        row["apart"] = told
    return rows


def _apart(scores: Scores, best: int, rounding: float) -> NDArray[np.bool_]:
    """Tell which candidates a component tells from the best one; (candidates,)."""
    if scores.apart is not None:
        return scores.apart[best] & (scores.reward != scores.reward[best])
    similarity = scores.similarity.astype(np.float64)
    return abs(similarity - similarity[best]) > rounding


def tie_seed(seed: int, query_id: str, text: str) -> int:
    """Derive the number that breaks a tie from the text itself, so that order cannot matter."""
    return derive_seed("tie", seed, query_id, text)
