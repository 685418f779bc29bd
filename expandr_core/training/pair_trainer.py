"""TRL's trainer for DPO: the loss of a step is the same in every layout, and so are the dev measures."""

from typing import Any

import torch
from trl.trainer.dpo_trainer import DPOTrainer

from expandr_core.training.pair_losses import LOSSES, Pairs
from expandr_core.training.token_trainer import TokenTrainer

SFT = "sft"  # the one of TRL's losses that is a mean over tokens, not over pairs


class PairTrainer(TokenTrainer, DPOTrainer):
    """TRL's trainer for pairs of token ids.

    TRL's loss `sft` is the mean over the chosen tokens of a batch, so the batches of a step would weigh
    alike however many tokens they have. Here it is the mean over those of the step.
    """

    _mean_tokens: torch.Tensor  # chosen tokens per batch of this step

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._weights = list(self.loss_weights)  # as the options say

    def get_batch_samples(self, *arguments: Any, **named: Any) -> tuple[list[Any], Any]:
        """Take the batches of a step, and count their chosen tokens."""
        batches, items = super().get_batch_samples(*arguments, **named)
        if SFT in self.loss_types and batches:
            tokens = torch.stack([_chosen_tokens(batch) for batch in batches]).float()
            everywhere: Any = self.accelerator.gather(tokens.to(self.accelerator.device))
            self._mean_tokens = everywhere.mean()
        return batches, items

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **named: Any) -> Any:
        """Compute the loss of a batch, with its share of the step's tokens in the weight of `sft`."""
        if SFT in self.loss_types:
            share = (_chosen_tokens(inputs) / self._mean_tokens).item()
            self.loss_weights = [
                weight * share if name == SFT else weight
                for name, weight in zip(self.loss_types, self._weights, strict=True)
            ]
        return super().compute_loss(model, inputs, *args, **named)

    def score(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return reward, tokens and -log p of each pair's texts: (pairs, 6), chosen before rejected."""
        scored = inputs.pop("completion_mask")
        reference = [inputs.pop(f"ref_{side}_logps") for side in ("chosen", "rejected")]
        labels = inputs["input_ids"].masked_fill(scored == 0, -100)
        output = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True)
        likelihood = self._log_likelihood(output.log_probs, scored[:, 1:])
        rewards = self.beta * (likelihood - torch.cat(reference))
        columns = (rewards, scored[:, 1:].sum(dim=1), -output.log_probs.sum(dim=1))
        return torch.stack([side for each in columns for side in each.chunk(2)], dim=1)

    def _log_likelihood(self, log_probs: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        """Add up the log-probabilities of each text; with `ld_alpha` the surplus counts less."""
        if self.ld_alpha is None:
            return log_probs.sum(dim=1)
        lengths = torch.stack(scored.sum(dim=1).chunk(2)).amin(dim=0).repeat(2)
        surplus = scored.cumsum(dim=1) > lengths[:, None]
        return (log_probs * torch.where(surplus, self.ld_alpha, 1.0)).sum(dim=1)

    def measures(self, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return means over pairs; the loss `sft` is one over tokens, as in training."""
        rewards, tokens, surprise = (scores[:, column : column + 2] for column in (0, 2, 4))
        pairs = Pairs(rewards, tokens, self.beta, self.label_smoothing)
        losses = [
            surprise[:, 0].sum() / tokens[:, 0].sum() if name == SFT else LOSSES[name](pairs).mean()
            for name in self.loss_types
        ]
        weighted = [weight * each for weight, each in zip(self._weights, losses, strict=True)]
        return {
            "loss": torch.stack(weighted).sum(),
            "rewards/chosen": pairs.chosen.mean(),
            "rewards/rejected": pairs.rejected.mean(),
            "rewards/accuracies": (pairs.margin > 0).double().mean(),
            "rewards/margins": pairs.margin.mean(),
        }


def _chosen_tokens(batch: dict[str, Any]) -> torch.Tensor:
    """Count the scored tokens of the chosen texts, the first half of a batch."""
    return batch["completion_mask"].chunk(2)[0].sum()
