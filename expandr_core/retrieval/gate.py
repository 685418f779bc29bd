"""The gate: whether a query is searched with its expansions, and with what weight.

It was fitted on dev by the stage `gate`, and is plain JSON. Here are only numpy and the standard
library, so that a server can decide with it. A query is described without judgements, by what its own
search and, after generation, its expansions show:

    gate = read_gate(folder)
    features = before_features(words, scores)        # or after_features(...), as gate.mode says
    weight = gate.weight if gate.expands(features[None])[0] else 0
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from expandr_core.errors import DataError

SCHEMA = 1  # of gate.json
FILE = "gate.json"
TOP = 10  # hits that features look at
BEFORE = ("words", "top_score", "gap")
AFTER = (*BEFORE, "query_similarity", "agreement", "overlap")
Policy = Literal["always", "never", "learned"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Gate:
    """A fitted gate.

    Attributes:
        mode: "global" (no gate: one weight for all queries), "before" or "after" generation.
        weight: of the expansions, of the queries that are expanded.
        alpha: the weight that was best on dev for all queries together; 0 if none helped. `weight`
            is the same unless alpha is 0, which leaves the weight of the run.
        policy: expand every query, none, or those that the model below chooses.
        features: BEFORE, or AFTER.
        means: of the features on dev.
        scales: their standard deviations, or 1.
        coefficients: of the logistic regression, of the standardised features.
        intercept: of the logistic regression.
        threshold: least log-odds that a query is expanded at.
        cost: nDCG@10 that expanding all queries must bring.
        dev: what it reached on dev; for people.
    """

    mode: Literal["global", "before", "after"]
    weight: float
    alpha: float
    policy: Policy
    features: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    coefficients: tuple[float, ...] = ()
    intercept: float = 0.0
    threshold: float = 0.0
    cost: float = 0.0
    dev: dict[str, Any] = field(default_factory=dict)

    @property
    def needs_text(self) -> bool:
        """Whether it decides by the expansions, so that every query must have them."""
        return self.policy == "always" or (self.policy == "learned" and self.mode == "after")

    def scores(self, features: Floats) -> Floats:
        """Return the log-odds that an expansion helps; of (queries, features), (queries,)."""
        scaled = (features - np.asarray(self.means)) / np.asarray(self.scales)
        return scaled @ np.asarray(self.coefficients) + self.intercept

    def expands(self, features: Floats) -> NDArray[np.bool_]:
        """Tell which queries are searched with their expansions.

        Args:
            features: (queries, features), see `features`; those of a policy that is not learned do not
                matter.

        >>> gate = Gate("before", 0.5, 0.5, "learned", BEFORE, (4, 0, 0), (2, 1, 1), (1, 0, 0), -0.5)
        >>> gate.expands(np.array([[4, 0.9, 0.1], [5, 0.9, 0.1], [9, 0.9, 0.1]])).tolist()
        [False, True, True]
        """
        if self.policy != "learned":
            return np.full(len(features), self.policy == "always")
        return self.scores(features) >= self.threshold

    def write(self, folder: Path) -> None:
        """Write gate.json."""
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, allow_nan=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_gate(folder: Path) -> Gate:
    """Read gate.json.

    Raises:
        DataError: if it is none, or another version wrote it.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        schema = found.pop("schema", None)
        if schema == SCHEMA:
            fields: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in found.items()
            }
            return Gate(**fields)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no gate ({error}); learn it again, by a run") from error
    raise DataError(
        f"{path} has schema {schema}, this version reads {SCHEMA}; learn the gate again, by a run"
    )


def before_features(words: int, scores: Floats | Sequence[float]) -> Floats:
    """Describe a query by itself: see BEFORE.

    Args:
        words: its length.
        scores: of the hits of the query alone, the best first; at least ten of them if there are.

    Returns:
        (features,): its length, the score of its first hit, and how far the tenth, or the last, is
        below; 0 for what a corpus of no or one passage does not have.

    >>> before_features(4, [0.75, 0.5, 0.25]).tolist(), before_features(4, []).tolist()
    ([4.0, 0.75, 0.5], [4.0, 0.0, 0.0])
    """
    best = np.asarray(scores, np.float64)[:TOP]
    if not len(best):
        return np.array([words, 0.0, 0.0])
    return np.array([words, best[0], best[0] - best[-1]])


def after_features(
    before: Floats,
    query: NDArray[np.floating],
    expansions: NDArray[np.floating],
    alone: Sequence[str],
    expanded: Sequence[str],
) -> Floats:
    """Describe a query with its expansions: see AFTER.

    Args:
        before: see `before_features`.
        query: (dimensions,) its vector.
        expansions: (expansions, dimensions) their vectors; without any, the three features are 0, 1, 1.
        alone: ids of the hits of the query alone, the best first.
        expanded: those of the expanded query.

    Returns:
        (features,): also the cosine of the query and the mean of its expansions, the mean cosine of two
        expansions (1 if there is one), and the share of the first ten hits that both searches have.

    >>> vectors = np.eye(2)
    >>> found = after_features(np.zeros(3), vectors[0], vectors, ["a", "b"], ["b", "c"])
    >>> found[3:].round(4).tolist()
    [0.7071, 0.0, 0.5]
    """
    if not len(expansions):
        return np.array([*before, 0.0, 1.0, 1.0])
    own, texts = _unit(query[None]), _unit(expansions)
    similarity = float((own @ _unit(texts.mean(axis=0)[None]).T)[0, 0])
    above = np.triu_indices(len(texts), 1)
    agreement = float((texts @ texts.T)[above].mean()) if len(texts) > 1 else 1.0
    first, second = set(alone[:TOP]), set(expanded[:TOP])
    overlap = len(first & second) / max(1, len(first), len(second))
    return np.array([*before, similarity, agreement, overlap])


def _unit(vectors: NDArray[np.floating]) -> Floats:
    """Scale rows to length 1; a row of zeros stays as it is."""
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
