"""The checkpoints of all trainings, and the newest complete one, from which a training resumes.

Our own checkpoints are single files, `checkpoint-<step>.pt`, which appear at once. Those of
transformers' Trainer are folders, `checkpoint-<step>`, which it fills over some time: a kill can leave
one, or its removal, half done, and the Trainer itself would resume from the highest number.
"""

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from expandr_core.store.filesystems import partial_file

log = logging.getLogger(__name__)
KEPT = 2  # of our own; the older one in case the newer is damaged


def write_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state of a training after a step, and delete the oldest checkpoints."""
    with partial_file(folder / f"checkpoint-{step}.pt") as partial:
        torch.save(state, partial)
    for path in _newest_first(folder)[KEPT:]:
        path.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the state of a training onto the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


def newest_checkpoint(folder: Path, processes: int = 1) -> Path | None:
    """Return the newest complete checkpoint in a folder, or None.

    Incomplete newer ones are deleted: the Trainer would count them among those that it keeps.

    Args:
        folder: the checkpoints of one training.
        processes: number of processes that train; the Trainer writes some files for each.
    """
    for path in _newest_first(folder):
        damage = _damage(path, processes)
        if damage is None:
            log.info("going on from %s", path.stem)
            return path
        log.warning("%s is incomplete (%s) and deleted", path.name, damage)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return None


def _newest_first(folder: Path) -> list[Path]:
    steps = {
        path: int(match[1])
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)(\.pt)?", path.name))
    }
    return sorted(steps, key=steps.__getitem__, reverse=True)


def _damage(checkpoint: Path, processes: int) -> str | None:
    """Describe what is missing or cut short: each file format shows by itself whether it is whole."""
    if checkpoint.is_file():
        return _truncated([checkpoint])
    for name in ("scheduler.pt", "trainer_state.json"):
        if not (checkpoint / name).exists():
            return f"no {name}"
    of_deepspeed = list(checkpoint.glob("global_step*/*optim_states.pt"))
    optimiser = [*checkpoint.glob("optimizer.pt"), *of_deepspeed]
    states = {"optimiser": optimiser, "random": list(checkpoint.glob("rng_state*.pth"))}
    for name, files in states.items():
        expected = 1 if files and files[0].name == "optimizer.pt" else processes
        if len(files) != expected:
            return f"{len(files)} of {expected} files of the {name} state"
    weights = list(checkpoint.rglob("*.safetensors"))
    if not weights:
        return "no weights"
    try:
        for path in weights:
            with safe_open(path, "pt"):
                pass
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (SafetensorError, ValueError) as error:
        return str(error)
    return _truncated([*checkpoint.rglob("*.pt"), *checkpoint.rglob("*.pth")])


def _truncated(files: list[Path]) -> str | None:
    """Return the name of the first file whose end is missing: torch writes zip archives."""
    return next((path.name for path in files if not zipfile.is_zipfile(path)), None)
