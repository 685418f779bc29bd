#!/usr/bin/env bash
# Guess: a static embedding model pads nothing, so a text's vector is the mean of its words' vectors, whatever else
# is done with the tokenizer that it was built from.
# Seen (sentence-transformers 6.2.0, transformers 5.23.0): the model shares the tokenizer. A call elsewhere with
# padding="max_length" switches on padding in the model, too, and from then on the mean counts the padding; with
# `truncation` the model cuts texts, while its `max_seq_length` stays infinite. The next plain call undoes both.
# Give StaticEmbedding a copy: Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

backend = Tokenizer(WordLevel({"[PAD]": 0, "moon": 1, "dust": 2, "boots": 3}, unk_token="[PAD]"))
backend.pre_tokenizer = Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
copied = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
shared, own = (
    SentenceTransformer(modules=[StaticEmbedding(each, embedding_weights=np.eye(4, dtype="float32"))], device="cpu")
    for each in (tokenizer, copied)
)
third = 1 / 3
for call, expected in (
    ({}, (0, third, third, third)),
    ({"padding": "max_length", "max_length": 8}, (0.625, 0.125, 0.125, 0.125)),
    ({"truncation": True, "max_length": 2}, (0, 0.5, 0.5, 0)),
    ({}, (0, third, third, third)),
):
    tokenizer("moon", **call)
    vector, other = (model.encode("moon dust boots") for model in (shared, own))
    print(f"after a call with {call}: {vector.round(3)}; max_seq_length {shared.max_seq_length}; of a copy: {other.round(3)}")
    assert np.allclose(vector, expected) and np.allclose(other, (0, third, third, third)), "the behaviour has changed"
PYTHON
