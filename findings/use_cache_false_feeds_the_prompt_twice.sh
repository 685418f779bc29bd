#!/usr/bin/env bash
# Guess: `use_cache: false` in a model's generation_config.json makes generation slower, and nothing else.
# Seen (transformers 5.23.0, torch 2.13.0): if `generate` is given a cache that holds the prompt but its last
# token, the cache is read all the same, and the whole prompt is fed again behind it. No error and no warning:
# the greedy text is another one. Whoever shares a prompt's cache must state `use_cache=True` in the call.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, initializer_range=0.3,
)
model = LlamaForCausalLM(config).eval()
prompt = torch.arange(5, 25)[None]


def text(with_cache: bool) -> list[int]:
    """Return the greedy text, from nothing or from a cache of all tokens of the prompt but the last."""
    given = {}
    if with_cache:
        with torch.inference_mode():
            given["past_key_values"] = model(prompt[:, :-1], past_key_values=DynamicCache(config=config), use_cache=True).past_key_values
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, pad_token_id=0, **given)
    return output[0, prompt.shape[1] :].tolist()


for use_cache in (True, False):
    model.generation_config = GenerationConfig(use_cache=use_cache)
    alone, shared = text(False), text(True)
    print(f"use_cache={use_cache}: equal texts with and without a shared cache: {alone == shared}")
    assert (alone == shared) is use_cache, "the behaviour has changed"
PYTHON
