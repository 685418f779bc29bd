#!/usr/bin/env bash
# Guess: where a folder has model.safetensors.index.json, the shards that it lists are the model.
# Seen (transformers 5.23.0): a model saved whole and later, into the same folder, in shards keeps both; then
# from_pretrained loads the older model.safetensors, silently. A tool that copies the files listed in the index
# and one that calls from_pretrained on the folder use different weights.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
old, new = LlamaForCausalLM(config), LlamaForCausalLM(config)
old.save_pretrained("old")
new.save_pretrained("model", max_shard_size="20KB")
assert Path("model/model.safetensors.index.json").is_file()
save_file(load_file("old/model.safetensors"), "model/model.safetensors", metadata={"format": "pt"})
loaded = LlamaForCausalLM.from_pretrained("model").lm_head.weight
is_old, is_new = (torch.equal(loaded, model.lm_head.weight) for model in (old, new))
print(f"loaded the single file: {is_old}; the shards of the index: {is_new}")
assert (is_old, is_new) == (True, False), "the behaviour has changed"
PYTHON
