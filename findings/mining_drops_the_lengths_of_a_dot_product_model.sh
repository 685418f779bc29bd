#!/usr/bin/env bash
# Guess: mine_hard_negatives ranks passages as the model itself does, by its similarity function; a model whose function
# is "dot" (as those of msmarco-*-dot-*) gets the passages of largest inner product.
# Seen (sentence-transformers 6.2.0): it normalises all vectors first, whatever the function. The hardest negative of a
# dot-product model is missed if it is long, and scores and margins are cosines, also of the positive.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 datasets==5.2.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.util import mine_hard_negatives, semantic_search
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

words = ["[UNK]", "question", "answer", "long", "short", "other"]
tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = Whitespace()
vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [3.0, 4.0], [0.9, 0.1], [-1.0, 0.0]])
model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors)], similarity_fn_name="dot")
passages = ["long", "short", "other"]
hits = semantic_search(
    model.encode_query(["question"]), model.encode_document(passages), score_function=model.similarity
)[0]
ranked = [(passages[hit["corpus_id"]], round(float(hit["score"]), 2)) for hit in hits]
pairs = Dataset.from_dict({"query": ["question"], "positive": ["answer"]})
mined = mine_hard_negatives(pairs, model, corpus=passages, num_negatives=1, output_scores=True, verbose=False)[0]
positive, negative = mined["scores"]
print(f"by the model's similarity, {model.similarity_fn_name}: {ranked}")
print(f"mined: {mined['negative']} at {negative:.3f}; its positive, of inner product 2, at {positive:.3f}")
assert ranked[0] == ("long", 3.0)
assert mined["negative"] == "short" and abs(positive - 1) < 1e-6
PYTHON
