"""Which checkpoint a training resumes from: the newest complete one."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expandr_core.training.checkpoints import newest_checkpoint, read_checkpoint, write_checkpoint

FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "trainer_state.json")


def write_trainer_checkpoint(folder: Path, step: int) -> Path:
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
        write_trainer_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11.partial").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("missing", [True, False])
def test_one_that_lacks_a_file_or_its_end_is_deleted(tmp_path, name, missing):
    write_trainer_checkpoint(tmp_path, 1)
    damaged = write_trainer_checkpoint(tmp_path, 2)
    if missing:
        (damaged / name).unlink()
    else:
        os.truncate(damaged / name, (damaged / name).stat().st_size - 1)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert not damaged.exists()


def test_without_one_training_begins(tmp_path):
    assert newest_checkpoint(tmp_path) is None


def test_our_own_are_single_files_and_two_are_kept(tmp_path):
    for step in (8, 9, 10, 11):
        write_checkpoint(tmp_path, step, {"step": step})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10.pt", "checkpoint-11.pt"}
    os.truncate(tmp_path / "checkpoint-11.pt", 100)
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "checkpoint-10.pt"
    assert read_checkpoint(newest) == {"step": 10}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10.pt"]
