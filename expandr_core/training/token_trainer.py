"""TRL's trainer for DPO on token ids, with dev measures that do not depend on the batching."""

from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.dpo_trainer import DPOTrainer


class TokenTrainer(DPOTrainer):
    """TRL's trainer for pairs of token ids; on its own it goes through strings and the chat template.

    Its dev measures are means over pairs. TRL's own are means over batches, and the last batch is
    smaller, or filled up with pairs of the first.
    """

    _rewards: list[torch.Tensor]  # of each batch: (pairs, 2), chosen and rejected

    def _prepare_dataset(self, dataset: Dataset, *arguments: Any, **named: Any) -> Dataset:
        return dataset

    def evaluation_loop(self, *arguments: Any, **named: Any) -> EvalLoopOutput:
        """Measure loss, rewards, accuracy and margin as means over pairs."""
        self._rewards = []
        output = super().evaluation_loop(*arguments, **named)
        chosen, rejected = torch.cat(self._rewards).double().unbind(dim=1)
        margins = chosen - rejected
        means = {
            "loss": -torch.nn.functional.logsigmoid(margins),
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (margins > 0).double(),
            "rewards/margins": margins,
        }
        measured = {f"eval_{name}": value.mean().item() for name, value in means.items()}
        return output._replace(metrics=(output.metrics or {}) | measured)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any
    ) -> tuple[None, None, None]:
        """Compute the rewards of a batch's pairs, as TRL's loss does."""
        inputs = self._prepare_inputs(inputs)
        scored = inputs.pop("completion_mask")
        reference = [inputs.pop(f"ref_{side}_logps") for side in ("chosen", "rejected")]
        labels = inputs["input_ids"].masked_fill(scored == 0, -100)
        with torch.no_grad(), self.compute_loss_context_manager():
            output = model(**inputs, labels=labels, use_cache=False, fused_lm_head=True)
        ratios = output.log_probs.sum(dim=1) - torch.cat(reference)  # (chosen, then rejected)
        rewards = self.beta * torch.stack(ratios.chunk(2), dim=1)  # (pairs, 2)
        # without the pairs that fill up a batch
        gathered: Any = self.accelerator.gather_for_metrics(rewards)
        self._rewards.append(gathered)
        return None, None, None
