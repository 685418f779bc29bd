"""An adapter from elsewhere is imported if it fits the language model, or refused with the reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from store_keys import full
from tiny_models import make_tokenizer, random_adapter, save_llm
from transformers import AutoModelForCausalLM

from expandr_core.encoders.convert_weights import convert
from expandr_core.errors import DataError
from expandr_core.generation.adapters import add, language_model, load_adapted, read_config
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.model_source import adapter_source
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import import_adapter
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.randint(5, 300, (2, 30), generator=torch.Generator().manual_seed(0))
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def released(llm: Path, folder: Path) -> Path:
    """An adapter as the paper's: rank 8 on all seven layers, in bfloat16, with the tokenizer."""
    random_adapter(llm, folder, 1, 8, ALL)
    edit_weights(folder, lambda weights: {n: w.bfloat16() for n, w in weights.items()})
    edit_config(folder, base_model_name_or_path="base_model/Meta-Llama-3-8B-Instruct")
    make_tokenizer().save_pretrained(folder)
    return folder


def edit_weights(folder: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    weights = edit(load_file(folder / WEIGHTS))
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def llm(store, llm_folder) -> Artifact:
    folder = shutil.copytree(llm_folder, store.scratch / "llm")
    return store.commit(full("import_model-1"), folder, [], {"counts": {}})


@pytest.fixture
def adapter(llm_folder, tmp_path) -> Path:
    return released(llm_folder, tmp_path / "release")


def imported(store: Store, llm: Artifact, adapter: Path) -> Artifact:
    folder, sources = adapter_source(str(adapter))
    options = import_adapter.OPTIONS(folder=str(folder))
    spec = make_spec("import_adapter", options, {"llm": llm}, sources=sources)
    return run_stage(spec, store, no_progress)


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits


def test_the_released_layout_is_imported_and_gives_the_logits_of_peft(
    store, llm, llm_folder, adapter
):
    artifact = imported(store, llm, adapter)
    assert language_model(store, artifact) == {"llm": llm, "adapter": artifact}
    folder = store.local(artifact)
    assert sorted(artifact.files) == [CONFIG, WEIGHTS]
    assert (folder / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    config = read_config(folder)
    assert config["base_model_name_or_path"] == llm.key
    assert config["target_modules"] == sorted(ALL)
    assert {name: count for name, count in artifact.counts.items() if "q_proj" in name} == {
        "layers/model.layers.*.self_attn.q_proj": 2
    }
    base: Any = AutoModelForCausalLM.from_pretrained(llm_folder)
    expected = logits(PeftModel.from_pretrained(base, str(adapter)))
    found = logits(load_adapted(llm_folder, folder, torch.float32))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - logits(AutoModelForCausalLM.from_pretrained(llm_folder))).abs().max() > 0.1


def test_the_model_is_not_read_but_for_the_names_and_shapes_of_its_weights(
    store, llm_folder, adapter
):
    folder = shutil.copytree(llm_folder, store.scratch / "broken")
    path = folder / "model.safetensors"
    size = int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[: 8 + size] + b"\xff" * (path.stat().st_size - 8 - size))
    broken = store.commit(full("import_model-2"), folder, [], {"counts": {}})
    assert imported(store, broken, adapter).counts["rank"] == 8


def test_the_key_names_what_counts_and_no_path(store, llm, adapter, tmp_path):
    first = imported(store, llm, adapter)
    (adapter / "README.md").write_text("about it")
    moved = shutil.copytree(adapter, tmp_path / "moved")
    assert imported(store, llm, moved).key == first.key
    edit_weights(moved, lambda weights: {n: w * 2 for n, w in weights.items()})
    assert imported(store, llm, moved).key != first.key


def test_a_pattern_of_layers_becomes_their_names(store, llm, llm_folder, tmp_path):
    adapter = random_adapter(llm_folder, tmp_path / "pattern", 1, 4, ["q_proj"])
    edit_weights(adapter, lambda w: {n: t for n, t in w.items() if ".layers.1." in n})
    edit_config(adapter, target_modules=r".*\.layers\.1\..*q_proj")
    folder = store.local(imported(store, llm, adapter))
    assert read_config(folder)["target_modules"] == ["model.layers.1.self_attn.q_proj"]
    assert not torch.equal(
        logits(load_adapted(llm_folder, folder, torch.float32)),
        logits(load_adapted(llm_folder, None, torch.float32)),
    )


def test_what_is_trained_on_top_is_added_without_rounding(llm_folder, adapter, tmp_path):
    second = random_adapter(llm_folder, tmp_path / "second", 2, 4, ["q_proj"])
    small = {name: weight * 1e-3 for name, weight in load_file(second / WEIGHTS).items()}
    save_file(small, second / WEIGHTS, {"format": "pt"})
    add(adapter, second)
    stacked = load_file(second / WEIGHTS)
    assert {weight.dtype for weight in stacked.values()} == {torch.float32}
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(stacked[name][8:], small[name])


def another_rank(folder: Path) -> None:
    edit_config(folder, r=16)


def another_base(folder: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    edit_weights(folder, lambda w: w | {name: torch.zeros(8, 48)})


def more_layers(folder: Path) -> None:
    edit_weights(
        folder,
        lambda w: (
            w | {n.replace("layers.1", "layers.2"): t + 1 for n, t in w.items() if "s.1" in n}
        ),
    )


def fewer_layers(folder: Path) -> None:
    edit_weights(folder, lambda w: {n: t for n, t in w.items() if "layers.1" not in n})


def an_embedding(folder: Path) -> None:
    name = "base_model.model.model.embed_tokens.weight"
    edit_weights(folder, lambda w: w | {name: torch.zeros(9, 32)})


def not_finite(folder: Path) -> None:
    def edit(weights):
        weights["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][2, 1] = float("nan")
        return weights

    edit_weights(folder, edit)


def damaged(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def more_tokens(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)


def another_template(folder: Path) -> None:
    make_tokenizer("{{ bos_token }}" + "{{ messages }}").save_pretrained(folder)


def another_beginning(folder: Path) -> None:
    make_tokenizer(adds_bos=True).save_pretrained(folder)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (another_rank, ["rank 8", "r 16"]),
        (another_base, ["q_proj.lora_A.weight is (8, 48), but (8, 32)", "llm.model"]),
        (more_layers, ["14 tensors do not belong", "layers.2", "base model in llm.model"]),
        (fewer_layers, ["14 tensors are missing", "layers.1"]),
        (an_embedding, ["embed_tokens.weight", "more than LoRA", "merge_and_unload"]),
        (not_finite, ["layers.1.mlp.up_proj.lora_B.weight", "not finite"]),
        (damaged, ["damaged", "get the file again"]),
        (pickled, ["only a pickle", "expandr_core.encoders.convert_weights"]),
        (more_tokens, ["'[PAD]' has another id", "llm.model"]),
        (another_template, ["chat template is another", "remove the adapter's tokenizer files"]),
        (another_beginning, ["texts get other ids"]),
        (lambda f: edit_config(f, use_dora=True), ["use_dora is True", "merge_and_unload"]),
        (lambda f: edit_config(f, use_rslora=True), ["use_rslora is True"]),
        (lambda f: edit_config(f, rank_pattern={"q_proj": 4}), ["rank_pattern is"]),
        (lambda f: edit_config(f, alpha_pattern={"q_proj": 4}), ["alpha_pattern is"]),
        (lambda f: edit_config(f, bias="all"), ["bias is 'all'"]),
        (lambda f: edit_config(f, modules_to_save=["lm_head"]), ["modules_to_save is ['lm_head']"]),
        (lambda f: edit_config(f, init_lora_weights="pissa"), ["init_lora_weights is 'pissa'"]),
        (lambda f: edit_config(f, layers_to_transform=[0]), ["layers_to_transform is [0]"]),
        (lambda f: edit_config(f, use_something_new=True), ["use_something_new is True"]),
        (lambda f: edit_config(f, task_type="SEQ_CLS"), ["task_type is 'SEQ_CLS'"]),
        (lambda f: edit_config(f, peft_type="IA3"), ["peft_type is 'IA3'"]),
        (lambda f: edit_config(f, r=0), ["r is 0"]),
        (lambda f: edit_config(f, lora_alpha="8"), ["lora_alpha '8'"]),
        (lambda f: edit_config(f, lora_alpha=float("nan")), ["lora_alpha nan"]),
        (lambda f: edit_config(f, target_modules="(q|v_proj"), ["unterminated", "llm.model"]),
        (lambda f: edit_config(f, target_modules=["c_attn"]), ["c_attn", "llm.model"]),
        (lambda f: edit_config(f, target_modules=None), ["target_modules None"]),
        (lambda f: (f / CONFIG).write_text("{"), ["not valid JSON"]),
        (lambda f: (f / CONFIG).unlink(), ["no adapter_config.json"]),
        (lambda f: (f / CONFIG).rename(f / "config.json"), ["a whole model", "llm.model"]),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_the_reason(
    store, llm, adapter, damage, parts
):
    damage(adapter)
    with pytest.raises(DataError) as caught:
        imported(store, llm, adapter)
    for part in [*parts, str(adapter)]:
        assert part in str(caught.value)


def test_an_adapter_of_a_deeper_model_is_refused(store, adapter, tmp_path):
    folder = save_llm(tmp_path / "shallow")
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    save_file(
        {n: w for n, w in weights.items() if "layers.1" not in n}, folder / "model.safetensors"
    )
    llm = store.commit(full("import_model-4"), folder, [], {"counts": {}})
    with pytest.raises(DataError, match=r"14 tensors do not belong .*layers\.1"):
        imported(store, llm, adapter)


def test_a_pickled_adapter_is_converted_by_the_program_that_the_error_names(
    store, llm, adapter, tmp_path
):
    expected = imported(store, llm, adapter)
    pickled(adapter)
    [written] = convert(adapter)
    assert written.name == WEIGHTS
    assert imported(store, llm, adapter).digest == expected.digest


def test_a_tokenizer_that_is_missing_or_has_no_template_says_nothing(store, llm, adapter):
    make_tokenizer(None).save_pretrained(adapter)
    (adapter / "chat_template.jinja").unlink()
    imported(store, llm, adapter)
    for path in adapter.glob("*token*"):
        path.unlink()
    imported(store, llm, adapter)


def test_an_adapter_that_changes_during_the_import_is_refused(store, llm, adapter):
    folder, sources = adapter_source(str(adapter))
    edit_weights(adapter, lambda weights: {n: w * 2 for n, w in weights.items()})
    options = import_adapter.OPTIONS(folder=str(folder))
    spec = make_spec("import_adapter", options, {"llm": llm}, sources=sources)
    with pytest.raises(DataError, match="changed during the run"):
        run_stage(spec, store, no_progress)
