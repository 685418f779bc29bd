"""What every training stage shares: progress, an end to what diverges, the checkpoint to go on from.

A checkpoint is a folder `checkpoint-<step>` that the Trainer fills over some time; a kill can leave
it, or its removal, half done. The Trainer itself would take the one with the highest number.
"""

import json
import logging
import math
import re
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from expandr_core.errors import DataError
from expandr_core.runtime.job import Progress

log = logging.getLogger(__name__)


class ProgressCallback(TrainerCallback):
    """Report each finished optimiser step as `report(done, total, "steps")`."""

    def __init__(self, report: Progress):
        """Report there."""
        self.report = report

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Report where training starts, or goes on."""
        self.report(state.global_step, state.max_steps, "steps")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Report one more step."""
        self.report(state.global_step, state.max_steps, "steps")


class FiniteCallback(TrainerCallback):
    """End a training at the first loss, gradient or weight that is not finite, before it is saved.

    Of weights that several processes share, each looks at its own; what ends one of them ends all.
    """

    def __init__(self, remedy: str):
        """Advise that in the DataError."""
        self.remedy = remedy

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Look at what was measured."""
        for name, value in (logs or {}).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise diverged(f"{name} is {value}", state.global_step, self.remedy)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """Look at the trained weights; with ZeRO-3, at this process's part of each."""
        assert model is not None
        trained = [each for each in model.parameters() if each.requires_grad]
        if not all_finite(getattr(each, "ds_tensor", each) for each in trained):
            raise diverged("a weight is not finite", state.global_step, self.remedy)


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Tell whether there is neither a NaN nor an infinity in any of the tensors."""
    own = [each.detach() for each in tensors]
    return bool(torch.nn.utils.get_total_norm(own).isfinite())


def diverged(what: str, step: int, remedy: str) -> DataError:
    """Say at which step a training went wrong, and what helps; who raises it keeps nothing."""
    return DataError(f"the training diverged: {what} at step {step}, and nothing is kept; {remedy}")


def last_checkpoint(folder: Path, processes: int = 1) -> str | None:
    """Return the newest complete checkpoint in a folder, for `resume_from_checkpoint`, or None.

    Half-written ones are deleted: the Trainer counts them among those that it keeps.

    Args:
        folder: of the checkpoints.
        processes: that write them; each has files of its own.
    """
    found = [path for path in folder.glob("checkpoint-*") if re.search(r"-\d+$", path.name)]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        damage = _damage(path, processes)
        if damage is None:
            log.info("going on from %s", path.name)
            return str(path)
        log.warning("%s is incomplete (%s) and deleted", path.name, damage)
        shutil.rmtree(path)
    return None


def _damage(checkpoint: Path, processes: int) -> str | None:
    """Name the first file that is missing or cut short: each format tells by itself."""
    for name in ("scheduler.pt", "trainer_state.json"):
        if not (checkpoint / name).exists():
            return f"no {name}"
    optimiser = [
        *checkpoint.glob("optimizer.pt"),
        *checkpoint.glob("global_step*/*optim_states.pt"),
    ]
    states = {"optimiser": optimiser, "random": list(checkpoint.glob("rng_state*.pth"))}
    for name, files in states.items():
        wanted = 1 if files and files[0].name == "optimizer.pt" else processes
        if len(files) != wanted:
            return f"{len(files)} of {wanted} files of the {name} state"
    weights = list(checkpoint.rglob("*.safetensors"))
    if not weights:
        return "no weights"
    for path in [*checkpoint.rglob("*.pt"), *checkpoint.rglob("*.pth")]:
        if not zipfile.is_zipfile(path):
            return path.name
    try:
        for path in weights:
            with safe_open(path, "pt"):
                pass
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (SafetensorError, ValueError) as error:
        return str(error)
    return None
