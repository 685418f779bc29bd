"""SFT, KTO and sums of losses: several processes, DeepSpeed and accumulation train one adapter."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import rank_programs
import torch
from alignment_world import job_of, put_world, spec_of
from safetensors.torch import load_file

from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import module_of
from expandr_core.store.store import Store
from expandr_core.training.alignment import AlignmentTask
from expandr_core.training.distributed import launch

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "SFT": ("sft", {}),
    "KTO": ("kto", {"batch_size": 8, "device_batch_size": 8}),
    "DPO with SFT": ("dpo", {"loss": ("sigmoid", "sft"), "loss_weights": (1.0, 0.5)}),
    "IPO and APO, length de-biased": ("dpo", {"loss": ("ipo", "apo_zero"), "ld_alpha": 0.3}),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "accumulation": {"device_batch_size": 2},
    "two processes": {"processes": 2, "device_batch_size": 2},
    "ZeRO-3": {"processes": 2, "zero": "3", "device_batch_size": 2, "gradient_checkpointing": True},
}
Trained = dict[str, tuple[list[dict[str, Any]], Path]]  # by method: log, and folder of the adapter


@pytest.fixture(scope="module")
def trained(llm_folder, tmp_path_factory):
    """Train by every method in a layout, once, in one group of processes."""
    store = Store(str(tmp_path_factory.mktemp("world") / "store"))
    inputs = put_world(store, llm_folder)

    @cache
    def train(layout: str) -> Trained:
        tasks: list[AlignmentTask] = []
        for stage, own in METHODS.values():
            spec = spec_of(stage, inputs, **(own | LAYOUTS.get(layout, {})))
            job = job_of(store, spec, tmp_path_factory.mktemp("job"))
            tasks.append(module_of(stage).prepare(job))
        if tasks[0].options.processes == 1:
            logs = rank_programs.align_all(tasks, "cpu", no_progress)
        else:
            logs = launch(rank_programs.align_all, 2, "cpu", tasks)
        return {
            method: (log, task.out) for method, log, task in zip(METHODS, logs, tasks, strict=True)
        }

    return train


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_the_same_adapter_and_logs_the_same(trained, method, layout):
    if "zero" in LAYOUTS[layout] and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed")
    (log, folder), (expected_log, expected) = trained(layout)[method], trained("plain")[method]
    weights = load_file(expected / "adapter_model.safetensors")
    assert (
        max(each.abs().max().item() for name, each in weights.items() if "lora_B" in name) > 0.005
    )
    again = load_file(folder / "adapter_model.safetensors")
    torch.testing.assert_close(again, weights, rtol=0, atol=1e-4)
    measures = {
        "loss",
        "eval_loss",
        "kl",
        "rewards/chosen",
        "rewards/margins",
        "eval_rewards/margins",
    }
    for entry, as_expected in zip(log, expected_log, strict=True):
        for name in measures & as_expected.keys():
            assert entry[name] == pytest.approx(as_expected[name], rel=1e-3, abs=1e-3), name
    assert any("eval_loss" in entry for entry in log)
