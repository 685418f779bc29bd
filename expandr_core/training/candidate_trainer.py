"""TRL's trainer for KTO, with the reference point of the whole step: no layout changes the loss."""

from typing import Any

import numpy as np
import torch
from trl.trainer.kto_trainer import KTOTrainer

from expandr_core.training.token_trainer import TokenTrainer

SIDES = ("chosen", "rejected")  # desirable and undesirable, in TRL's words


class CandidateTrainer(TokenTrainer, KTOTrainer):
    """TRL's trainer for single texts, each desirable or not (Ethayarajh et al., 2024).

    KTO compares a text with a reference point, the divergence from the reference model on unrelated
    texts. TRL estimates it from the few texts of one batch; here it is one number for the step, from
    all its texts. The unrelated text of a row is fixed, and in the row.
    """

    _point: torch.Tensor  # of this step

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._texts: dict[str, list[int]] = {
            side: [] for side in SIDES
        }  # of each batch since a log

    def get_batch_samples(self, *arguments: Any, **named: Any) -> tuple[list[Any], Any]:
        """Take the batches of a step, and estimate the reference point by their unrelated texts."""
        batches, items = super().get_batch_samples(*arguments, **named)
        if batches:
            with torch.no_grad(), self.compute_loss_context_manager():
                ratios = [
                    self._unrelated_ratios(self.model_wrapped, self._prepare_inputs(batch))
                    for batch in batches
                ]
            everywhere: Any = self.accelerator.gather(torch.cat(ratios))
            self._point = everywhere.mean()
        return batches, items

    def _unrelated_ratios(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Return log(policy / reference) of each row's unrelated text: (rows,)."""
        return super()._compute_kl_logps(model, batch) - batch["ref_KL_logps"]

    def _compute_kl_logps(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Return what TRL takes the step's reference point from."""
        return batch["ref_KL_logps"] + self._point

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **named: Any) -> Any:
        """Compute the loss of a batch, and count its texts, as TRL's measures are means over these."""
        desirable = inputs["label"].bool()
        counts: Any = self.accelerator.gather(torch.stack([desirable.sum(), (~desirable).sum()]))
        for side, texts in zip(SIDES, counts.view(-1, 2).sum(dim=0).tolist(), strict=True):
            if texts:  # else TRL appends no measure
                self._texts[side].append(texts)
        return super().compute_loss(model, inputs, *args, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the means over a step's texts; TRL's own are means over its batches."""
        measured = self._metrics["train"]
        means = {}
        for side, texts in self._texts.items():
            if texts:
                means[side] = float(np.average(measured[f"rewards/{side}"], weights=texts))
                measured[f"rewards/{side}"] = [means[side]]
                texts.clear()
        if len(means) == len(SIDES):
            measured["rewards/margins"] = [means["chosen"] - means["rejected"]]
        super().log(logs, start_time)

    def score(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return label, reward and the unrelated text's log ratio of each row."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        output = model(**texts, labels=labels, use_cache=False, fused_lm_head=True)
        rewards = self.beta * (output.log_probs.sum(dim=1) - inputs["ref_logps"])
        columns = (inputs["label"].to(rewards), rewards, self._unrelated_ratios(model, inputs))
        return torch.stack(columns, dim=1)

    def measures(self, scores: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss by the reference point of all dev rows, and the mean rewards."""
        label, rewards, unrelated = scores.unbind(dim=1)
        desirable, point = label > 0, unrelated.mean().clamp(min=0)
        gain = torch.where(desirable, 1, -1) * (rewards - self.beta * point)
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight)
        means = {
            f"rewards/{side}": rewards[rows].mean()
            for side, rows in zip(SIDES, (desirable, ~desirable), strict=True)
            if rows.any()
        }
        if len(means) == len(SIDES):
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return {"loss": (weights * (1 - torch.sigmoid(gain))).mean(), "kl": point, **means}
