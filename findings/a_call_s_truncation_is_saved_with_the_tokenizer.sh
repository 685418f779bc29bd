#!/usr/bin/env bash
# Guess: `max_length` in a call to a tokenizer concerns that call only; what `save_pretrained` writes does not depend
# on the texts tokenized before.
# Seen (transformers 5.23.0, tokenizers 0.23.3, sentence-transformers 6.2.0): a fast tokenizer keeps the last call's
# truncation, and `save_pretrained` writes it to tokenizer.json. AutoTokenizer resets it at each call, but a program
# that reads the file with the tokenizers library truncates every text: here, a static embedding model embeds only
# the first three words of a passage, without a warning.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 tokenizers==0.23.3 sentence-transformers==6.2.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerFast

words = {word: number for number, word in enumerate(["[UNK]", "the", "dust", "of", "moon", "clings", "to", "boots"])}
backend = Tokenizer(WordLevel(words, unk_token="[UNK]"))
backend.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
passage, other = "the dust of the moon clings to boots", "the dust of boots"
tokenizer.save_pretrained("before")
tokenizer(passage, truncation=True, max_length=3)
tokenizer.save_pretrained("after")

for name, expected in (("before", 8), ("after", 3)):
    auto = len(AutoTokenizer.from_pretrained(name)(passage).input_ids)
    raw = Tokenizer.from_file(f"{name}/tokenizer.json")
    static = SentenceTransformer(modules=[StaticEmbedding(raw, embedding_dim=8)], device="cpu")
    same = bool((static.encode(passage) == static.encode(other)).all())
    tokens = len(raw.encode(passage).ids)
    print(f"saved {name} the call: {auto} tokens by AutoTokenizer, {tokens} by Tokenizer; two passages, one vector: {same}")
    assert (auto, tokens, same) == (8, expected, name == "after"), "the behaviour has changed"
PYTHON
