#!/usr/bin/env bash
# Guess: a folder with config.json and model.safetensors is loaded as these say.
# Seen (transformers 5.23.0 with peft 0.21.2 installed): if the merged model was saved into the folder of its
# adapter, as one does who merges in place, from_pretrained adds the adapter to the merged weights once more. The
# difference from the merged model is as large as the adapter, without a word.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 peft==0.21.2
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
LlamaForCausalLM(config).save_pretrained("base")
adapted = get_peft_model(
    LlamaForCausalLM.from_pretrained("base"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
)
adapted.save_pretrained("model")  # adapter_config.json and adapter_model.safetensors
merged = adapted.merge_and_unload()
merged.save_pretrained("model")  # config.json and model.safetensors beside them
ids = torch.arange(20)[None]
with torch.inference_mode():
    expected = merged.eval()(ids).logits
    found = AutoModelForCausalLM.from_pretrained("model").eval()(ids).logits
away = float((found - expected).norm() / expected.norm())
print(f"the logits are {away:.0%} away from those of the weights in model.safetensors")
assert away > 0.01, "the behaviour has changed"
PYTHON
