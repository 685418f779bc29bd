"""The checkpoints of a training: one file each, which appears at once.

`training` has those of transformers' Trainer, which are folders that it fills over some time.
"""

import logging
import zipfile
from pathlib import Path
from typing import Any

import torch

from expandr_core.store.filesystems import partial_file

log = logging.getLogger(__name__)
KEPT = 2  # the older one in case the newer is damaged


def write_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write what a training needs to go on after a step; the oldest checkpoints are deleted."""
    with partial_file(folder / f"checkpoint-{step}.pt") as partial:
        torch.save(state, partial)
    for path in _newest_first(folder)[KEPT:]:
        path.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what was written, on the CPU."""
    return torch.load(path, map_location="cpu", weights_only=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint in a folder, or None; a damaged one is deleted."""
    for path in _newest_first(folder):
        if zipfile.is_zipfile(path):  # torch's format; its end comes last
            log.info("going on from %s", path.stem)
            return path
        log.warning("%s is damaged and deleted", path.name)
        path.unlink()
    return None


def _newest_first(folder: Path) -> list[Path]:
    paths = folder.glob("checkpoint-*.pt")
    return sorted(paths, key=lambda path: int(path.stem.rpartition("-")[2]), reverse=True)
