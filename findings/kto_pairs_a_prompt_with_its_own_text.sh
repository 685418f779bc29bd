#!/usr/bin/env bash
# Guess: KTOTrainer estimates its reference point from mismatched texts, that is, from each prompt with a text that was
# written for another one.
# Seen (trl 1.16.0): it takes the text of the row before, within a device batch. With several texts a prompt, in the
# order in which they are sampled, most of these "mismatched" texts were written for the very same prompt; and a row
# that is alone in the last batch gets its own text. The batch size per device therefore changes the loss.
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
from trl import KTOConfig, KTOTrainer

words = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "[EOS]", *(f"w{n}" for n in range(29))])}
backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
backend.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]")
config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
torch.manual_seed(0)
policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
# two prompts, four texts of the one and five of the other; text wN was written for prompt w20 or w21
prompts = ["w20 "] * 4 + ["w21 "] * 5
rows = Dataset.from_dict(
    {"prompt": prompts, "completion": [f"w{n}" for n in range(9)], "label": [n % 2 == 0 for n in range(9)]}
)
options = KTOConfig(output_dir="out", per_device_train_batch_size=8, use_cpu=True, bf16=False, report_to=[])
made = KTOTrainer(policy, reference, options, train_dataset=rows, processing_class=tokenizer).train_dataset
written_for = {tuple(row["completion_ids"]): row["prompt_ids"] for row in made}
same = [written_for[tuple(row["KL_completion_ids"])] == row["prompt_ids"] for row in made]
itself = [row["KL_completion_ids"] == row["completion_ids"] for row in made]
print(f"{sum(same)} of {len(same)} mismatched texts are of the same prompt, {sum(itself)} is the row's own text")
assert sum(same) == 7 and itself == [False] * 8 + [True], "the behaviour has changed"
PYTHON
