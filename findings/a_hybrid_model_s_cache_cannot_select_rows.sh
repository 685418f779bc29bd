#!/usr/bin/env bash
# Guess: what can be done to the cache of a causal language model can be done to that of a hybrid one, whose
# layers of linear attention stand between layers of attention: `DynamicCache` offers one set of methods.
# Seen (transformers 5.23.0, torch 2.13.0): `batch_repeat_interleave` and `batch_select_indices` raise
# AttributeError for a hybrid model's cache, in the first such layer; `reorder_cache` works, also with more
# indices than there are rows. So a prompt's cache is spread over many texts by `reorder_cache`, for every model.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3NextConfig

torch.manual_seed(0)
config = Qwen3NextConfig(
    vocab_size=200, hidden_size=32, intermediate_size=64, moe_intermediate_size=32, shared_expert_intermediate_size=32,
    num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=2, num_experts_per_tok=1,
    linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
    layer_types=["linear_attention", "full_attention"],
)
model = AutoModelForCausalLM.from_config(config).eval()
prompts, rows = torch.arange(5, 25).reshape(2, 10), torch.tensor([0, 0, 1])


def cache() -> DynamicCache:
    with torch.inference_mode():
        return model(prompts, use_cache=True).past_key_values


for name, argument in (("batch_repeat_interleave", 2), ("batch_select_indices", rows), ("reorder_cache", rows)):
    try:
        getattr(cache(), name)(argument)
        seen = "works"
    except AttributeError as error:
        seen = f"AttributeError: {error}"
    print(f"{name}: {seen}")
    assert (seen == "works") is (name == "reorder_cache"), "the behaviour has changed"
spread = cache()
spread.reorder_cache(rows)
with torch.inference_mode():
    shared = model(torch.tensor([[7], [8], [7]]), past_key_values=spread, use_cache=True).logits[:, -1]
    whole = model(torch.cat([prompts[rows], torch.tensor([[7], [8], [7]])], 1)).logits[:, -1]
print("largest difference to the whole texts:", float((shared - whole).abs().max()))
assert torch.allclose(shared, whole, atol=1e-4), "the behaviour has changed"
PYTHON
