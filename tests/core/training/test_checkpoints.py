"""Which checkpoint of a Trainer is gone on from: the newest whole one."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expandr_core.training.checkpoints import last_checkpoint

FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "trainer_state.json")


def write_checkpoint(folder: Path, step: int) -> Path:
    """Write the files that every Trainer leaves."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    for name in FILES[:3]:
        torch.save({"step": step}, checkpoint / name)
    save_file({"weight": torch.zeros(2)}, checkpoint / "model.safetensors")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return checkpoint


def test_the_newest_counts_by_number_not_by_name(tmp_path):
    for step in (9, 10):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11.partial").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("missing", [True, False])
def test_one_that_lacks_a_file_or_its_end_is_deleted(tmp_path, name, missing):
    write_checkpoint(tmp_path, 1)
    damaged = write_checkpoint(tmp_path, 2)
    if missing:
        (damaged / name).unlink()
    else:
        os.truncate(damaged / name, (damaged / name).stat().st_size - 1)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert not damaged.exists()


def test_without_one_training_begins(tmp_path):
    assert last_checkpoint(tmp_path) is None
