#!/usr/bin/env bash
# Guess: encode_document uses a folder's prompt "passage" if it has no prompt "document".
# Seen (sentence-transformers 6.2.0): a model made with the prompts "query" and "passage" gets an empty prompt
# "document" of the library's own. That one is found first, so encode_document encodes without any prompt, while
# encode_query uses the folder's.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

words = {word: number for number, word in enumerate(["[UNK]", "passage", "query", "moon", "dust"])}
tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
tokenizer.pre_tokenizer = Whitespace()
torch.manual_seed(0)
model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], prompts={"query": "query ", "passage": "passage "}, device="cpu")
model.save("model")
model = SentenceTransformer("model", device="cpu")
print("prompts:", model.prompts)
query = model.encode_query("moon dust") == model.encode("query moon dust")
document = model.encode_document("moon dust")
without, with_prompt = ((document == model.encode(text)).all() for text in ("moon dust", "passage moon dust"))
print(f"query prompt used: {query.all()}; passage prompt used: {with_prompt}; none used: {without}")
assert query.all() and without and not with_prompt, "the behaviour has changed"
PYTHON
