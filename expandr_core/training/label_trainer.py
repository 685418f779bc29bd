"""Train a causal language model, and predict only tokens that are learnt."""

from typing import Any

import torch
from transformers import Trainer


class LabelTrainer(Trainer):
    """Trainer that computes logits only where the next token has a label.

    A prompt and the padding have none. The loss is as always: the mean cross-entropy of the others.
    """

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch; `labels` are (texts, tokens), negative where there is none."""
        following = inputs.pop("labels")[:, 1:]
        learnt = following >= 0
        plain: Any = self.accelerator.unwrap_model(model)
        with self.accelerator.autocast():
            hidden = plain.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
            logits = plain.lm_head(hidden[learnt])
        loss = torch.nn.functional.cross_entropy(logits.float(), following[learnt])
        return (loss, {"logits": logits}) if return_outputs else loss
