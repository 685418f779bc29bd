"""Language models that are not Llamas: hybrids and mixtures write right texts, others are refused."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import BOS, EOS, make_tokenizer
from transformers import AutoModelForCausalLM

from expandr_core.errors import DataError
from expandr_core.generation import rows
from expandr_core.generation.adapters import check_targets, layers_to_adapt, linear_layers
from expandr_core.generation.chat_templates import load_tokenizer
from expandr_core.generation.check_llm import check_llm, try_llm
from expandr_core.generation.engine import Request
from expandr_core.generation.transformers_engine import TransformersGenerator
from expandr_core.options.generation import SamplingOptions
from expandr_core.options.training import LoRAOptions
from expandr_core.runtime.model_folders import check_folder
from expandr_core.stages.tiny_llm import LAYERS
from expandr_core.stages.tiny_llm import _config as tiny_config

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
LINEAR: dict[str, Any] = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
HYBRIDS: dict[str, dict[str, Any]] = {
    "Gemma3TextConfig": {
        "head_dim": 16,
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Lfm2Config": {"layer_types": ["conv", "full_attention"]},
    "Qwen3NextConfig": LINEAR | EXPERTS,
    "Qwen3_5TextConfig": LINEAR,
    "FalconH1Config": MAMBA | {"mamba_d_ssm": 64},
    "GraniteMoeHybridConfig": MAMBA
    | {
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
        "layer_types": ["mamba", "attention"],
    },
}


def save(folder: Path, kind: str, **sizes: Any) -> Path:
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = getattr(transformers, kind)(vocab_size=len(tokenizer), **(SMALL | sizes))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def greedy(generator: TransformersGenerator, prompt: list[int], tokens: int) -> str:
    """Write a text as slowly as can be: the whole of it is computed again for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + tokens and ids[-1] not in generator.codec.ends:
        with torch.inference_mode():
            logits = generator.model(input_ids=torch.tensor([ids]), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return generator.codec.completion(ids[len(prompt) :]).text


@pytest.mark.parametrize("kind", HYBRIDS)
def test_hybrids_write_several_texts_for_each_of_several_prompts(tmp_path, kind):
    folder = save(tmp_path / "llm", kind, **HYBRIDS[kind])
    check_folder(folder)
    check_llm(folder)
    generator = TransformersGenerator(folder, "cpu")
    options = SamplingOptions(max_new_tokens=5)
    requests = [
        Request("q2d", f"{'moon ' * number} dust?", "", (1, 2, 3), (1.0, 1.0, 0.0))
        for number in (1, 3, 2)
    ]
    texts = dict(each for batch in generator.generate(requests, options, 200) for each in batch)
    prompts = generator.codec.prompts(requests, options, 200)
    for number, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
        [[(_, alone)]] = generator.generate([request], options, 200)
        assert alone == texts[number]
        assert texts[number][2].text == greedy(generator, prompt.ids, 5)
    assert len({text.text for found in texts.values() for text in found}) > 3


@pytest.mark.parametrize("joins", [True, False])
@pytest.mark.parametrize("kind", HYBRIDS)
def test_texts_leave_and_enter_the_batch_without_a_trace(tmp_path, monkeypatch, kind, joins):
    """Texts end at many tokens, so that batches of five change often, or wait for each other."""
    monkeypatch.setattr(rows, "ROOM", 2)
    folder = save(tmp_path / "llm", kind, **HYBRIDS[kind])
    generator = TransformersGenerator(folder, "cpu", batch_size=5)
    generator.codec.ends |= set(range(60, 90))
    options = SamplingOptions(max_new_tokens=14)
    requests = [
        Request("q2d", "dust " * (7 * number % 5), "", (number, 9, 0), (1.0, 1.0, 0.0))
        for number in range(7)
    ]
    prompts = generator.codec.prompts(requests, options, 200)
    alone = [next(generator.generate([request], options, 200))[0][1] for request in requests]
    if not joins:
        monkeypatch.setattr(rows, "_JOINABLE", set())
    texts = dict(each for batch in generator.generate(requests, options, 200) for each in batch)
    assert [texts[number] for number in range(7)] == alone
    assert len({text.tokens for own in alone for text in own}) > 3
    for own, prompt in zip(alone, prompts, strict=True):
        assert own[2].text == greedy(generator, prompt.ids, 14)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("MambaConfig", {"state_size": 8}),
        ("RecurrentGemmaConfig", {"lru_width": 32, "num_hidden_layers": 3}),
    ],
)
def test_a_model_whose_prompts_cannot_be_shared_is_refused_by_name(tmp_path, kind, sizes):
    folder = save(tmp_path / "llm", kind, **sizes)
    name = f"{kind.removesuffix('Config')}ForCausalLM"
    with pytest.raises(DataError, match=rf"{name} keeps no keys and values.*name a model with"):
        check_llm(folder)


def test_the_text_part_of_a_model_of_images_is_a_language_model(tmp_path):
    folder = save(tmp_path / "llm", "Qwen3_5TextConfig", **LINEAR)
    weights = load_file(folder / "model.safetensors")
    inner = {
        name.replace("model.", "model.language_model.", 1): weight
        for name, weight in weights.items()
    }
    save_file(inner, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": json.loads((folder / "config.json").read_text()),
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert "model.layers.*.self_attn.q_proj" in check_llm(folder)


def test_a_model_that_transformers_would_take_for_another_is_refused(tmp_path):
    folder = save(tmp_path / "llm", "Qwen2Config")
    edit_json(folder / "config.json", model_type="llama")
    with pytest.raises(DataError, match=r"Qwen2ForCausalLM, but .* would load LlamaForCausalLM"):
        check_llm(folder)
    edit_json(folder / "config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(DataError, match=r"weights are unexpected \(.*\.bias"):
        check_llm(folder)


# Which layers an adapter adapts


def test_every_name_of_a_layer_is_checked_and_the_error_lists_the_layers(tmp_path):
    layers = check_llm(save(tmp_path / "llm", "Phi3Config"))
    assert layers["model.layers.*.self_attn.qkv_proj"] == 2
    check_targets(layers, ["qkv_proj", "mlp.down_proj", "layers.0.mlp.gate_up_proj"])
    check_targets(layers, ["all-linear"])
    for wrong in (["q_proj", "v_proj"], ["qkv_proj", "v_proj"], ["mlp.qkv_proj"], ["kv_proj"]):
        with pytest.raises(DataError) as caught:
            check_targets(layers, wrong)
        told = ", ".join(repr(name) for name in wrong if name != "qkv_proj")
        names = "down_proj, gate_up_proj, lm_head, o_proj, qkv_proj"
        for part in (f"has no linear layer {told}; it has {names};", "'all-linear'"):
            assert part in str(caught.value)


def test_the_layers_of_the_tiny_llm_are_known_before_it_is_made():
    from expandr_core.options.generation import TinyLLMOptions

    config = tiny_config(300, TinyLLMOptions(hidden_size=32, layers=2))
    layers = linear_layers(AutoModelForCausalLM.from_config(config))
    assert layers == dict.fromkeys(LAYERS, 2)


@pytest.mark.parametrize("kind", ["LlamaConfig", "FalconH1Config", "Qwen3NextConfig"])
def test_all_linear_layers_are_adapted_but_the_head(kind):
    config = getattr(transformers, kind)(vocab_size=50, **(SMALL | HYBRIDS.get(kind, {})))
    model = AutoModelForCausalLM.from_config(config)
    layers = linear_layers(model)
    targets = layers_to_adapt(model, ["all-linear"])
    adapted = get_peft_model(model, LoraConfig(target_modules=targets, task_type="CAUSAL_LM"))
    found = sum(name.endswith("lora_A.default.weight") for name, _ in adapted.named_parameters())
    assert found == sum(layers.values()) - 1
    assert "lm_head" not in targets
    assert not any("mamba.out_proj" in target for target in targets)


def test_all_linear_stands_alone():
    assert LoRAOptions(targets=("all-linear",)).targets == ("all-linear",)
    with pytest.raises(ValueError, match="'all-linear' stands alone"):
        LoRAOptions(targets=("all-linear", "q_proj"))


# Whether it can be used is tried


def test_weights_are_checked_piece_by_piece_and_masks_may_be_infinite(tmp_path, monkeypatch):
    """Pythia's masks, which transformers ignores, became minus infinity when they were halved."""
    monkeypatch.setattr("expandr_core.runtime.weights.PIECE", 100)
    folder = save(tmp_path / "llm", "GPTNeoXConfig")
    weights = load_file(folder / "model.safetensors")
    weights["gpt_neox.layers.0.attention.masked_bias"] = torch.tensor(-torch.inf).half()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    check_llm(folder)
    name = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"
    weights[name][-1, -1] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=rf"model\.safetensors: {name} has numbers .* not finite"):
        check_llm(folder)


def test_a_model_that_fails_at_its_first_text_is_refused(tmp_path):
    folder = save(tmp_path / "llm", "LlamaConfig")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full((32,), 3e38)  # finite, and logits are not
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=f"{folder}: .*not finite"):
        check_llm(folder)


@pytest.mark.parametrize("part", ["embed_tokens", "model.norm", "weight"])
def test_a_model_whose_embeddings_norms_or_all_weights_are_zero_is_refused(tmp_path, part):
    folder = save(tmp_path / "llm", "LlamaConfig")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if part in name:
            weight.zero_()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=f"{folder}: every token is equally likely"):
        check_llm(folder)


def test_a_model_too_large_for_the_memory_is_accepted_without_a_text(tmp_path, caplog):
    folder = save(tmp_path / "llm", "LlamaConfig", hidden_size=64)
    model = SimpleNamespace(
        parameters=lambda: [SimpleNamespace(numel=lambda: 10**15)],
        config=SimpleNamespace(),
    )
    with caplog.at_level(logging.WARNING, "expandr_core"):
        try_llm(folder, model, load_tokenizer(folder))
    assert "not tried on a text; the model takes 4000000.0 GB" in caplog.text
