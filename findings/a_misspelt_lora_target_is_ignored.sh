#!/usr/bin/env bash
# Guess: every name in LoraConfig.target_modules must be a module of the model.
# Seen (peft 0.21.2): only a list of which nothing fits is refused. One misspelt name beside a right one is
# ignored, so a layer that the configuration names is never trained; the saved adapter_config.json still names it.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)


def adapted(*targets: str) -> int:
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=list(targets)))
    return sum("lora_A" in name for name, _ in model.named_parameters())


alone, beside = adapted("q_proj"), adapted("q_proj", "v_porj")
print(f"layers adapted for q_proj: {alone}; for q_proj and a misspelt v_proj: {beside}")
assert alone == beside == 2, "the behaviour has changed"
try:
    adapted("v_porj")
    raise SystemExit("the behaviour has changed")
except ValueError as error:
    print(f"for the misspelt name alone: {error}")
PYTHON
