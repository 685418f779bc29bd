#!/usr/bin/env bash
# Guess: `mine_hard_negatives` with a `cache_folder` reuses only the embeddings of the model that it is given, so a
# retrained retriever mines its own negatives.
# Seen (sentence-transformers 6.2.0): the cache's key is a hash of the texts, the prompts and the base model's name
# on the hub. It leaves out the weights, and that name is empty for a model loaded from a folder. So all retrievers
# on disk share one entry, and the second one gets the negatives of the first, without a warning.
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
from sentence_transformers.util import mine_hard_negatives
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

queries, passages = ([f"{kind}{number}" for number in range(12)] for kind in ("query", "passage"))
words = {word: number for number, word in enumerate(["[UNK]", *queries, *passages])}
tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
tokenizer.pre_tokenizer = Whitespace()
for seed, name in enumerate(("first", "second")):
    torch.manual_seed(seed)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu").save(name)
pairs = Dataset.from_dict({"query": queries, "passage": passages})


def mined(name: str, cache: str | None) -> list[str]:
    model = SentenceTransformer(name, device="cpu")
    return list(mine_hard_negatives(pairs, model, num_negatives=1, cache_folder=cache, verbose=False)["negative"])


first, cached, fresh = mined("first", "cache"), mined("second", "cache"), mined("second", None)
print(f"the second retriever's negatives with the cache: the first one's {cached == first}, its own {cached == fresh}")
print(f"wrong negatives: {sum(a != b for a, b in zip(cached, fresh))} of {len(fresh)}")
assert cached == first != fresh, "the behaviour has changed"
PYTHON
