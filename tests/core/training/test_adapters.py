"""Adapters kept apart: their sum, training from one, and texts that are those of the merged model."""

import shutil

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from test_dpo import no_progress, put_inputs, spec_of
from tiny_models import random_adapter

from expandr_core.generation.adapters import add, language_model, load_adapted, read_config
from expandr_core.generation.engine import Request
from expandr_core.generation.transformers_engine import TransformersGenerator
from expandr_core.options.generation import SamplingOptions
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import merge
from expandr_core.store.store import Store

IDS = torch.randint(5, 300, (2, 30), generator=torch.Generator().manual_seed(0))


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits


def test_the_sum_of_two_adapters_is_both_of_them(llm_folder, tmp_path):
    first = random_adapter(llm_folder, tmp_path / "first", 1, 4, ["q_proj", "v_proj"])
    second = random_adapter(llm_folder, tmp_path / "second", 2, 8, ["v_proj", "up_proj"])
    one_after_the_other = load_adapted(llm_folder, first, torch.float32)
    both = PeftModel.from_pretrained(one_after_the_other, str(second)).merge_and_unload()
    expected = logits(both)
    assert (expected - logits(load_adapted(llm_folder, second, torch.float32))).abs().max() > 0.1
    add(first, second)
    assert read_config(second)["r"] == 12
    assert read_config(second)["target_modules"] == ["q_proj", "up_proj", "v_proj"]
    found = logits(load_adapted(llm_folder, second, torch.float32))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_rounds_with_the_adapter_apart_are_those_with_merged_models(
    llm_folder, tmp_path, monkeypatch
):
    """Two trainings, each from the model of the one before: their texts and logits are the same."""
    store = Store(str(tmp_path / "store"))
    inputs = put_inputs(store, llm_folder)
    first = run_stage(spec_of(inputs), store, no_progress)
    assert language_model(store, inputs["llm"]) == {"llm": inputs["llm"]}
    assert language_model(store, first) == {"llm": inputs["llm"], "adapter": first}

    models = {"apart": {**inputs, "adapter": first}}
    spec = make_spec("merge", merge.OPTIONS(), language_model(store, first), device="cpu")
    models["merged"] = {"llm": run_stage(spec, store, no_progress), "pairs": inputs["pairs"]}
    seconds = {
        name: run_stage(spec_of(found), store, no_progress) for name, found in models.items()
    }
    assert read_config(store.local(seconds["apart"]))["r"] == 16
    assert language_model(store, seconds["apart"])["llm"] == inputs["llm"]
    found = {}
    for name, adapter in seconds.items():
        parts = {role: store.local(part) for role, part in language_model(store, adapter).items()}
        found[name] = load_adapted(parts["llm"], parts["adapter"], torch.float32)
    expected = logits(found["merged"])
    torch.testing.assert_close(logits(found["apart"]), expected, rtol=1e-3, atol=1e-3)
    monkeypatch.chdir(store.local(first).parent)  # an adapter names its model as the store does
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    opened = logits(AutoPeftModelForCausalLM.from_pretrained(seconds["apart"].key))
    torch.testing.assert_close(opened, logits(found["apart"]), rtol=1e-3, atol=1e-3)
    start = logits(load_adapted(llm_folder, store.local(first), torch.float32))
    assert (expected - start).abs().max() > 0.1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_those_of_the_merged_model(llm_folder, tmp_path, temperature):
    adapter = random_adapter(llm_folder, tmp_path / "adapter", 1, 4, ["q_proj", "v_proj"])
    merged = shutil.copytree(llm_folder, tmp_path / "merged")
    load_adapted(llm_folder, adapter, torch.float32).save_pretrained(merged)
    requests = [Request("q2d", f"why {n}?", "", (n,), (temperature,)) for n in range(8)]
    sampling = SamplingOptions(max_new_tokens=24)
    texts = []
    for folder, own in ((llm_folder, adapter), (merged, None), (llm_folder, None)):
        generator = TransformersGenerator(folder, "cpu", own)
        batches = generator.generate(requests, sampling, 100)
        texts.append(sorted((index, found[0].text) for batch in batches for index, found in batch))
    assert texts[0] == texts[1] != texts[2]
