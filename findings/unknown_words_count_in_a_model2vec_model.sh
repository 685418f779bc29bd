#!/usr/bin/env bash
# Guess: sentence-transformers loads a model2vec folder as a StaticEmbedding, so both libraries give the same vectors.
# Seen (model2vec 0.10.0, sentence-transformers 6.2.0): model2vec leaves unknown words out of the mean, while
# StaticEmbedding averages the unknown token's row with the rest. A text of unknown words alone is the zero vector
# in one library and a fixed vector in the other, to which all such texts are identical. No warning. An index made by
# one library must not be searched by the other, unless the vocabulary covers every word.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 model2vec==0.10.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from model2vec import StaticModel
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers

words = ["[UNK]", "[PAD]", "cats", "dogs", "sleep"]
tokenizer = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
rows = np.random.default_rng(0).normal(size=(len(words), 8)).astype(np.float32)
static = StaticModel(rows, tokenizer, normalize=True)
static.save_pretrained("static")
loaded = SentenceTransformer("static")

for text, equal in (("cats sleep", True), ("cats snooze", False), ("wombats snooze", False)):
    [one], [other] = static.encode([text]), loaded.encode([text], normalize_embeddings=True)
    print(f"{text}: cosine {one @ other:.3f}, lengths {np.linalg.norm(one):.0f} and {np.linalg.norm(other):.0f}")
    assert np.allclose(one, other, atol=1e-6) is equal, "the behaviour has changed"
assert not static.encode(["wombats snooze"]).any(), "the behaviour has changed"
PYTHON
