"""Callbacks for every training with transformers' Trainer: report progress, stop on divergence."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from expandr_core.errors import DataError
from expandr_core.runtime.job import Progress


class ProgressCallback(TrainerCallback):
    """Report each finished optimiser step as `report(done, total, "steps")`."""

    def __init__(self, report: Progress):
        """Store the function to report to."""
        self.report = report

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Report the step from which training starts or resumes."""
        self.report(state.global_step, state.max_steps, "steps")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Report one more step."""
        self.report(state.global_step, state.max_steps, "steps")


class FiniteCallback(TrainerCallback):
    """Stop a training at the first loss, gradient or weight that is not finite, before it is saved.

    If several processes share the weights, each checks its part, and an error in one stops all.
    """

    def __init__(self, remedy: str):
        """Store the advice that the DataError gives."""
        self.remedy = remedy

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Check the logged measures."""
        for name, value in (kwargs.get("logs") or {}).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise diverged(f"{name} is {value}", state.global_step, self.remedy)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Check the trained weights; with ZeRO-3, this process's part of each."""
        trained = [weight for weight in kwargs["model"].parameters() if weight.requires_grad]
        if not all_finite(getattr(weight, "ds_tensor", weight) for weight in trained):
            raise diverged("a weight is not finite", state.global_step, self.remedy)


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether the tensors contain neither NaN nor infinity."""
    detached = [tensor.detach() for tensor in tensors]
    return bool(torch.nn.utils.get_total_norm(detached).isfinite())


def diverged(what: str, step: int, remedy: str) -> DataError:
    """Make the error that says at which step a training diverged, and what helps."""
    return DataError(f"the training diverged: {what} at step {step}, and nothing is kept; {remedy}")
