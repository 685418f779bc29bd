#!/usr/bin/env bash
# Guess: LoRA on "all-linear" adapts the same parts of every mixture-of-experts model.
# Seen (peft 0.21.2, transformers 5.23.0): transformers 5 stacks a layer's experts into two parameters, which are not
# linear layers. For Qwen3-MoE, peft extends "all-linear" to these parameters and to the router; for Qwen2-MoE it
# does not, so the routed experts and the router stay frozen. There is no warning.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2MoeConfig, Qwen3MoeConfig

sizes = dict(
    vocab_size=64, hidden_size=32, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=2, num_experts=4,
)
seen = []
for config in (Qwen3MoeConfig(**sizes, head_dim=16), Qwen2MoeConfig(**sizes, shared_expert_intermediate_size=32)):
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules="all-linear"))
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    experts, router = (any(f".mlp.{part}." in name for name in adapted) for part in ("experts", "gate"))
    print(f"{config.model_type}: experts adapted {experts}, router adapted {router}")
    seen.append((experts, router))
assert seen == [(True, True), (False, False)], "the behaviour has changed"
PYTHON
