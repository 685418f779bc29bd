#!/usr/bin/env bash
# Guess: a GGUF of Llama 3.1 or later that transformers reads computes what the original does; llama.cpp's converter keeps
# the scaling of the rotary frequencies in the tensor rope_freqs.weight, as one factor for each frequency.
# Seen (transformers 5.23.0, gguf 0.19.0): the tensor is dropped without a word, and the config says rope_type "default".
# The first token's logits are right, later ones are those of a model without the scaling, exactly.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import gguf
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

scaling = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
scaling |= {"original_max_position_embeddings": 64}
torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=512, rope_parameters=scaling, tie_word_embeddings=True,
    )
)
writer = gguf.GGUFWriter("llama.gguf", "llama")
writer.add_context_length(512)
writer.add_embedding_length(64)
writer.add_block_count(1)
writer.add_feed_forward_length(64)
writer.add_head_count(2)
writer.add_head_count_kv(1)
writer.add_rope_dimension_count(32)
writer.add_rope_freq_base(10000.0)
writer.add_layer_norm_rms_eps(1e-6)
writer.add_vocab_size(32)
unscaled = 1 / 10000.0 ** (torch.arange(0, 32, 2) / 32)
scaled = model.model.rotary_emb.inv_freq
writer.add_tensor("rope_freqs.weight", (unscaled / scaled).numpy())
names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
for name, weight in model.state_dict().items():
    heads = {"q_proj": 2, "k_proj": 1}.get(name.split(".")[-2])
    if heads:  # llama.cpp lays out queries and keys in pairs
        halves = weight.reshape(heads, 2, len(weight) // heads // 2, weight.shape[1])
        weight = halves.transpose(1, 2).reshape(weight.shape).contiguous()
    if name != "lm_head.weight":
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), weight.numpy())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
read = AutoModelForCausalLM.from_pretrained(".", gguf_file="llama.gguf")
ids = torch.randint(0, 32, (1, 200), generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    original, found = model(ids).logits[0], read(ids).logits[0]
    scaled.copy_(unscaled)
    without = model(ids).logits[0]
first, last = ((original - found)[row].abs().max().item() for row in (0, -1))
print(f"the config read says {read.config.rope_parameters}")
print(f"logits differ by {first:.1e} at the first token, {last:.1e} at the last;", end=" ")
print(f"from the model without scaling by {(without - found).abs().max().item():.1e}")
assert read.config.rope_parameters["rope_type"] == "default"
assert first < 1e-6 < 1e-4 < last and torch.allclose(without, found, atol=1e-6)
PYTHON
