#!/usr/bin/env bash
# Guess: `eval_rewards/accuracies` and `eval_rewards/margins` of DPOTrainer are means over the evaluation pairs, as
# `eval_loss` is, so the batch size changes only the speed.
# Seen (trl 1.16.0): they are means of the batch means, in which a short last batch weighs as much as a full one. In
# batches of eight, the last of nine pairs gets half the weight: the accuracy rises from 1/3 to 5/8 and the mean
# margin changes sign, while `eval_loss` stays the same.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 trl==1.16.0 datasets==5.2.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

words = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "[EOS]", *(f"w{n}" for n in range(29))])}
backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
backend.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]")
config = LlamaConfig(
    vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.5
)
torch.manual_seed(0)
policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
pairs = Dataset.from_dict(
    {"prompt": ["w0 "] * 9, "chosen": [f"w{n}" for n in range(1, 10)], "rejected": [f"w{n}" for n in range(12, 21)]}
)
seen = {}
for batch in (1, 8):
    options = DPOConfig(output_dir="out", per_device_eval_batch_size=batch, use_cpu=True, bf16=False, report_to=[])
    trainer = DPOTrainer(policy, reference, options, train_dataset=pairs, eval_dataset=pairs, processing_class=tokenizer)
    metrics = trainer.evaluate()
    seen[batch] = [metrics[f"eval_{name}"] for name in ("loss", "rewards/accuracies", "rewards/margins")]
    print("batches of {}: loss {:.3f}, accuracy {:.3f}, margin {:+.3f}".format(batch, *seen[batch]))
assert abs(seen[1][0] - seen[8][0]) < 1e-5, "the behaviour has changed"
assert seen[8][1] - seen[1][1] > 0.25 and seen[1][2] < 0 < seen[8][2], "the behaviour has changed"
PYTHON
