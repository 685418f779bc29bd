"""DPO by several processes, with DeepSpeed, with accumulation: one adapter, also after a kill."""

import contextlib
import importlib.util
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from flat_options import flat
from rank_programs import ranks_of
from safetensors.torch import load_file
from stage_processes import stage_processes
from test_dpo import job_of, kill_at_checkpoint, no_progress, put_inputs, row

from expandr_core.errors import DataError
from expandr_core.options.generation import PromptOptions
from expandr_core.runtime.child import run_in_child
from expandr_core.runtime.job import Job
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import dpo
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store, sha256_of

PAIRS = [row(number, "dev" if number >= 18 else "train") for number in range(23)]
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.01,
    "epochs": 4.4,  # of 18 pairs in batches of four: 20 steps, and no pass ends with a batch
    "batch_size": 4,
    "device_batch_size": 4,
    "max_tokens": 120,
    "prompt": PromptOptions(max_tokens=90),
    "evaluation_steps": 13,  # and checkpoints
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"device_batch_size": 2},
    "two processes": {"processes": 2, "device_batch_size": 1},
    "ZeRO-2, one process": {"zero": "2", "device_batch_size": 2},
    "ZeRO-2": {"processes": 2, "zero": "2", "device_batch_size": 2},
    "ZeRO-3": {"processes": 2, "zero": "3", "device_batch_size": 2, "gradient_checkpointing": True},
}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)


def spec_of(inputs: dict[str, Artifact], **options: Any) -> StageSpec:
    return make_spec("dpo", flat(dpo.OPTIONS, **(SETTINGS | options)), inputs, device="cpu")


@pytest.fixture(scope="module")
def shared(llm_folder, tmp_path_factory) -> tuple[Store, dict[str, Artifact]]:
    """A store with the inputs, from which nothing is made in it."""
    return store_of(tmp_path_factory.mktemp("shared") / "store", llm_folder)


def store_of(folder: Path, llm_folder: Path) -> tuple[Store, dict[str, Artifact]]:
    store = Store(str(folder))
    return store, put_inputs(store, llm_folder, PAIRS)


@pytest.fixture(scope="module")
def whole(shared, tmp_path_factory) -> Callable[[str], Job]:
    """Train in one of the layouts, once, without a kill; keep the checkpoints."""
    store, inputs = shared

    @cache
    def train(name: str) -> Job:
        job = job_of(store, spec_of(inputs, **LAYOUTS[name]), tmp_path_factory.mktemp("whole"))
        dpo.run(job)
        return job

    return train


def weights_of(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.out / "adapter_model.safetensors")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir()}


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "plain"])
@needs_deepspeed
def test_every_layout_trains_the_same_adapter(whole, name):
    plain, made = whole("plain"), whole(name)
    assert made.spec.key == plain.spec.key
    assert made.counts["steps"] == made.counts["best_step"] == 20
    assert made.counts == pytest.approx(plain.counts, abs=1e-3)
    weights = weights_of(plain)
    torch.testing.assert_close(weights_of(made), weights, rtol=0, atol=1e-4)
    trained = [weight.abs().max().item() for name, weight in weights.items() if "lora_B" in name]
    assert max(trained) > 0.01


@needs_deepspeed
def test_a_killed_training_of_several_goes_on_to_the_same_bytes(
    whole, llm_folder, tmp_path, caplog
):
    expected = whole("ZeRO-3")
    store, inputs = store_of(tmp_path / "store", llm_folder)
    spec = spec_of(inputs, **LAYOUTS["ZeRO-3"])
    trained = set[psutil.Process]()
    folder = store.scratch / "work" / spec.key / "checkpoints"
    killer = threading.Thread(target=kill_at_checkpoint, args=(folder, 13, 2))
    killer.start()
    with pytest.raises(RuntimeError, match="was killed by SIGKILL"):
        run_in_child(spec, store, lambda *_: trained.update(processes()))
    killer.join()
    caplog.clear()
    assert len(trained) >= 3 and not psutil.wait_procs(trained, timeout=300)[1]
    with caplog.at_level(logging.INFO, "expandr_core"):
        resumed = run_stage(spec, store, no_progress)
    assert re.search("going on from checkpoint-(13|20)", caplog.text)  # as late as the kill came
    assert resumed.files == digests(expected.out)
    assert resumed.counts == expected.counts


@needs_deepspeed
def test_a_damaged_checkpoint_of_several_is_skipped_on_the_way_to_the_same_bytes(
    whole, shared, tmp_path, caplog
):
    expected, (store, inputs) = whole("ZeRO-2"), shared
    shutil.copytree(expected.checkpoints, tmp_path / "checkpoints")
    [last] = (tmp_path / "checkpoints").glob("*/checkpoint-20")
    state = next(last.glob("global_step*/*optim_states.pt"))
    os.truncate(state, state.stat().st_size - 1)
    resumed = job_of(store, spec_of(inputs, **LAYOUTS["ZeRO-2"]), tmp_path)
    with caplog.at_level(logging.INFO, "expandr_core"):
        dpo.run(resumed)
    assert f"checkpoint-20 is incomplete ({state.name})" in caplog.text
    assert "going on from checkpoint-13" in caplog.text
    assert digests(resumed.out) == digests(expected.out)
    assert resumed.counts == expected.counts


@pytest.mark.parametrize("name", ["two processes", "ZeRO-3"])
@needs_deepspeed
def test_a_training_of_several_that_diverges_ends_and_keeps_nothing(shared, name):
    store, inputs = shared
    wild = {"learning_rate": 1e30, "warmup_steps": 0}
    with pytest.raises(DataError, match=r"diverged: .*lower dpo\.learning_rate"):
        run_stage(spec_of(inputs, **LAYOUTS[name], **wild), store, no_progress)
    assert not ranks_of(psutil.Process())
    assert not store.keys("dpo")


def processes() -> list[psutil.Process]:
    """Return the stage's process, and those that train for it; none once it was killed."""
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one, too
        stages = stage_processes()
        return [each for stage in stages for each in [stage, *stage.children(recursive=True)]]
    return []


def test_what_ends_the_stage_ends_all_its_processes_and_leaves_no_artifact(llm_folder, tmp_path):
    store, inputs = store_of(tmp_path / "store", llm_folder)
    spec = spec_of(inputs, processes=2, device_batch_size=2, epochs=4000)
    seen = []

    def cancel(done: int, total: int, unit: str) -> None:
        if done:
            seen.extend(processes())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_child(spec, store, cancel)
    assert len(seen) >= 3  # the stage and its two processes
    assert not any(process.is_running() for process in seen)
    assert store.lookup(spec.key) is None
