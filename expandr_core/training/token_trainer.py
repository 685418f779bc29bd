"""What TRL's trainers lack for us: rows of token ids, and dev measures that no batching changes."""

from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_trainer import SFTTrainer


class TokenTrainer(Trainer):
    """A trainer on rows of token ids; TRL's own go through strings and the chat template.

    Its dev measures are means over rows. TRL's own are means over batches, and the last batch is
    smaller, or filled up with rows of the first. Each trainer says by `score` and `measures` what it
    measures.
    """

    _scores: list[torch.Tensor]  # of each dev batch: (rows, columns)

    def score(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return what the measures of a dev batch are made of: (rows, columns)."""
        raise NotImplementedError  # here; each trainer has its own

    def measures(self, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the measures of all dev rows by name, "loss" among them, each a number.

        Args:
            scores: (dev rows, columns), as `score` has returned them.
        """
        raise NotImplementedError  # here; each trainer has its own

    def _prepare_dataset(self, dataset: Dataset, *arguments: Any, **named: Any) -> Dataset:
        return dataset

    def evaluation_loop(self, *arguments: Any, **named: Any) -> EvalLoopOutput:
        """Score the dev rows, and measure all of them together."""
        self._scores = []
        output = super().evaluation_loop(*arguments, **named)
        scores = torch.cat(self._scores).double()
        measured = {f"eval_{name}": value.item() for name, value in self.measures(scores).items()}
        return output._replace(metrics=(output.metrics or {}) | measured)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *arguments: Any, **named: Any
    ) -> tuple[None, None, None]:
        """Score a batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = self.score(model, inputs)
        # without the rows that fill up a batch
        gathered: Any = self.accelerator.gather_for_metrics(scores)
        self._scores.append(gathered)
        return None, None, None


class TextTrainer(TokenTrainer, SFTTrainer):
    """TRL's trainer for SFT. The loss is a mean over the tokens of a step, in every layout.

    TRL divides by the tokens of a batch, not of the step, if the model's `forward` takes no keywords.
    The rows bring labels: from a `completion_mask` TRL would make some only if told to.
    """

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        self.model_accepts_loss_kwargs = True  # the trainer computes the loss, not the model
        return super()._get_num_items_in_batch(batch_samples, device)

    def score(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return -log p(text) and the number of tokens of each text."""
        output = model(**inputs, use_cache=False, fused_lm_head=True)
        return torch.stack([-output.log_probs.sum(dim=1), output.label_mask.sum(dim=1)], dim=1)

    def measures(self, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the mean loss over all tokens."""
        losses, tokens = scores.unbind(dim=1)
        return {"loss": losses.sum() / tokens.sum()}
