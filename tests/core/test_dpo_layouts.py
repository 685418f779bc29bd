"""DPO by several processes, with DeepSpeed, with accumulation: one adapter, also after a kill."""

import importlib.util
import logging
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_dpo import kill_at_checkpoint, no_progress, put_inputs, row

from expandr_core.artifacts import Artifact, StageSpec
from expandr_core.child import run_in_child
from expandr_core.errors import DataError
from expandr_core.stage import make_spec
from expandr_core.stages import dpo
from expandr_core.store import Store

PAIRS = [row(number, "dev" if number >= 18 else "train") for number in range(22)]
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.01,
    "epochs": 4.4,  # of 18 pairs in batches of four: 20 steps, and no pass ends with a batch
    "batch_size": 4,
    "device_batch_size": 4,
    "max_tokens": 120,
    "max_prompt_tokens": 90,
    "checkpoint_steps": 5,
    "evaluation_steps": 5,
}
LAYOUTS: dict[str, dict[str, Any]] = {
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
    return make_spec("dpo", dpo.OPTIONS(**(SETTINGS | options)), inputs, device="cpu")


def store_of(folder: Path, llm_folder: Path, rows: list[dict] = PAIRS) -> tuple[Store, dict]:
    store = Store(str(folder))
    return store, put_inputs(store, llm_folder, rows)


@pytest.fixture(scope="module")
def plain(llm_folder, tmp_path_factory) -> tuple[Artifact, dict[str, torch.Tensor]]:
    store, inputs = store_of(tmp_path_factory.mktemp("plain") / "store", llm_folder)
    made = run_in_child(spec_of(inputs), store, no_progress)
    return made, load_file(store.local(made) / "adapter_model.safetensors")


@pytest.mark.parametrize("name", LAYOUTS)
@needs_deepspeed
def test_every_layout_trains_the_same_adapter(plain, llm_folder, tmp_path, name):
    expected, weights = plain
    store, inputs = store_of(tmp_path / "store", llm_folder)
    made = run_in_child(spec_of(inputs, **LAYOUTS[name]), store, no_progress)
    assert made.key == expected.key
    assert made.counts["steps"] == 20
    assert made.counts == pytest.approx(expected.counts, abs=1e-3)
    found = load_file(store.local(made) / "adapter_model.safetensors")
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-4)
    assert (
        max(weight.abs().max().item() for name, weight in weights.items() if "lora_B" in name)
        > 0.01
    )


@pytest.mark.parametrize("name", ["ZeRO-2", "ZeRO-3"])
@needs_deepspeed
def test_a_killed_training_of_several_goes_on_to_the_same_bytes(llm_folder, tmp_path, name, caplog):
    layout, rows = LAYOUTS[name], [each for each in PAIRS if each["part"] == "train"]
    outcomes, trained = [], set[psutil.Process]()
    for place in ("killed", "whole"):
        store, inputs = store_of(tmp_path / place, llm_folder, rows)
        spec = spec_of(inputs, **layout)
        if place == "killed":
            folder = store.scratch / "work" / spec.key / "checkpoints"
            killer = threading.Thread(target=kill_at_checkpoint, args=(folder, 10))
            killer.start()
            with pytest.raises(RuntimeError, match="was killed by SIGKILL"):
                run_in_child(spec, store, lambda *_: trained.update(processes()))
            killer.join()
            assert len(trained) >= 3 and not psutil.wait_procs(trained, timeout=10)[1]
        with caplog.at_level(logging.INFO, "expandr_core"):
            outcomes.append(run_in_child(spec, store, no_progress))
    assert "going on from checkpoint-1" in caplog.text
    assert outcomes[0].files == outcomes[1].files
    assert outcomes[0].counts == outcomes[1].counts


def processes() -> list[psutil.Process]:
    """Return the stage's process, and those that train for it."""
    stages = [
        each for each in psutil.Process().children() if "expandr_core.stage" in each.cmdline()
    ]
    return [each for stage in stages for each in [stage, *stage.children(recursive=True)]]


def test_processes_that_cannot_share_a_batch_are_the_input_s_fault(llm_folder, tmp_path):
    store, inputs = store_of(tmp_path / "store", llm_folder)
    with pytest.raises(DataError, match=r"dpo\.batch_size \(5\) must be a multiple"):
        run_in_child(spec_of(inputs, processes=2, batch_size=5), store, no_progress)


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
