"""What every training stage shares: progress from the Trainer, and the checkpoint to go on from.

A checkpoint is a folder `checkpoint-<step>` that the Trainer fills over some time; a kill can leave
it, or its removal, half done. The Trainer itself would take the one with the highest number.
"""

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from expandr_core.stage import Job

log = logging.getLogger(__name__)
REQUIRED = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


class ProgressCallback(TrainerCallback):
    """Report each finished optimiser step as `job.progress(done, total, "steps")`."""

    def __init__(self, job: Job):
        """Report to a job."""
        self.job = job

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Report where training starts, or goes on."""
        self.job.progress(state.global_step, state.max_steps, "steps")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Report one more step."""
        self.job.progress(state.global_step, state.max_steps, "steps")


def last_checkpoint(folder: Path) -> str | None:
    """Return the newest complete checkpoint in a folder, for `resume_from_checkpoint`, or None.

    Half-written ones are deleted: the Trainer counts them among those that it keeps.
    """
    found = [path for path in folder.glob("checkpoint-*") if re.search(r"-\d+$", path.name)]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        damage = _damage(path)
        if damage is None:
            log.info("going on from %s", path.name)
            return str(path)
        log.warning("%s is incomplete (%s) and deleted", path.name, damage)
        shutil.rmtree(path)
    return None


def _damage(checkpoint: Path) -> str | None:
    """Name the first file that is missing or cut short: each format tells by itself."""
    for name in REQUIRED:
        if not (checkpoint / name).exists():
            return f"no {name}"
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
