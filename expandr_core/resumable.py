"""Run a Trainer of transformers (or TRL, or sentence-transformers) so that a kill costs little."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Trainer

    from expandr_core.stage import Progress


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; those that a kill left unfinished are deleted.

    The Trainer writes `trainer_state.json` last, so a checkpoint with a readable one is whole.
    """
    steps = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    while steps:
        try:
            json.loads((steps[-1] / "trainer_state.json").read_text())
            return steps[-1]
        except (FileNotFoundError, ValueError):
            shutil.rmtree(steps.pop())
    return None


def train_resumable(trainer: "Trainer", checkpoints: Path, progress: "Progress") -> None:
    """Train, from the newest checkpoint if there is one, and report the steps."""
    report_steps(trainer, progress)
    newest = newest_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=str(newest) if newest else None)


def report_steps(trainer: "Trainer", progress: "Progress") -> None:
    """Let a Trainer report its steps to us, instead of printing."""
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    class Report(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            progress(state.global_step, state.max_steps, "steps")

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Report())
