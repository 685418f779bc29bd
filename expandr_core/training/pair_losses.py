"""The losses of single pairs, as TRL 1.16 defines them.

TRL returns only the mean over a batch; the measure on the dev pairs needs the loss of each.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid, sigmoid

TAU = 0.05  # DiscoPOP's temperature, as in its paper and in TRL


@dataclass(frozen=True)
class Pairs:
    """Pairs as a loss sees them.

    Attributes:
        rewards: (pairs, 2), beta * log(policy / reference) of the chosen and of the rejected text.
        tokens: (pairs, 2), their lengths.
        beta: of DPO; for ipo its tau.
        label_smoothing: of robust and exo_pair.
    """

    rewards: Tensor
    tokens: Tensor
    beta: float
    label_smoothing: float = 0.0

    @property
    def chosen(self) -> Tensor:
        """The rewards of the chosen texts: (pairs,)."""
        return self.rewards[:, 0]

    @property
    def rejected(self) -> Tensor:
        """The rewards of the rejected texts: (pairs,)."""
        return self.rewards[:, 1]

    @property
    def margin(self) -> Tensor:
        """The differences of the rewards: (pairs,)."""
        return self.chosen - self.rejected

    @property
    def margin_per_token(self) -> Tensor:
        """The differences of the rewards per token: (pairs,)."""
        per_token = self.rewards / self.tokens.clamp(min=1)
        return per_token[:, 0] - per_token[:, 1]


def _ipo(pairs: Pairs) -> Tensor:
    return (pairs.margin_per_token / pairs.beta - 1 / (2 * pairs.beta)) ** 2


def _exo_pair(pairs: Pairs) -> Tensor:
    smoothing = pairs.label_smoothing
    right, wrong = logsigmoid(pairs.margin), logsigmoid(-pairs.margin)
    true_right, true_wrong = pairs.rewards.new_tensor([1 - smoothing, smoothing]).log()
    return right.exp() * (right - true_right) + wrong.exp() * (wrong - true_wrong)


def _nca_pair(pairs: Pairs) -> Tensor:
    lowered = logsigmoid(-pairs.chosen) + logsigmoid(-pairs.rejected)
    return -logsigmoid(pairs.chosen) - lowered / 2


def _robust(pairs: Pairs) -> Tensor:
    smoothing = pairs.label_smoothing
    right, wrong = -logsigmoid(pairs.margin), -logsigmoid(-pairs.margin)
    return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)


def _sppo_hard(pairs: Pairs) -> Tensor:
    half, beta = 0.5, pairs.beta
    return ((pairs.chosen - half) / beta) ** 2 + ((pairs.rejected + half) / beta) ** 2


def _discopop(pairs: Pairs) -> Tensor:
    share = sigmoid(pairs.margin / TAU)
    return -logsigmoid(pairs.margin) * (1 - share) + (-pairs.margin).exp() * share


LOSSES: dict[str, Callable[[Pairs], Tensor]] = {  # by TRL's name; each returns (pairs,)
    "sigmoid": lambda pairs: -logsigmoid(pairs.margin),  # Rafailov et al., 2023
    "hinge": lambda pairs: (1 - pairs.margin).relu(),  # Zhao et al., 2023
    "ipo": _ipo,  # Azar et al., 2023, with means over tokens
    "exo_pair": _exo_pair,  # Ji et al., 2024
    "nca_pair": _nca_pair,  # Chen et al., 2024
    "robust": _robust,  # Chowdhury et al., 2024
    "bco_pair": lambda pairs: -logsigmoid(pairs.chosen) - logsigmoid(-pairs.rejected),  # Jung, 2024
    "sppo_hard": _sppo_hard,  # Wu et al., 2024
    "apo_zero": lambda pairs: (
        1 - sigmoid(pairs.chosen) + sigmoid(pairs.rejected)
    ),  # D'Oosterlinck, 2024
    "apo_down": lambda pairs: sigmoid(pairs.chosen) + 1 - sigmoid(pairs.margin),
    "discopop": _discopop,  # Lu et al., 2024
    "sigmoid_norm": lambda pairs: -logsigmoid(pairs.margin_per_token),  # Meng et al., 2024
}
