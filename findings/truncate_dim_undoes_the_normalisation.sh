#!/usr/bin/env bash
# Guess: a retriever that ends in a Normalize module returns unit vectors, whatever `truncate_dim` is.
# Seen (sentence-transformers 6.2.0): `truncate_dim` cuts the vectors after the last module, and they are not
# normalised again. If the model's similarity is "dot", as it often is for such a retriever, truncation changes the
# ranking: passages with large leading components win. `normalize_embeddings=True` normalises after the cut.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

queries, passages = ([f"{kind}{number}" for number in range(100)] for kind in ("query", "passage"))
words = {word: number for number, word in enumerate(["[UNK]", *queries, *passages])}
tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
tokenizer.pre_tokenizer = Whitespace()
torch.manual_seed(0)
modules = [StaticEmbedding(tokenizer, embedding_dim=16), Normalize()]
model = SentenceTransformer(modules=modules, similarity_fn_name="dot", device="cpu")


def first(dimensions: int | None, normalise: bool) -> tuple[list[int], float]:
    """Return each query's first passage, and the length of the shortest passage vector."""
    options = dict(truncate_dim=dimensions, normalize_embeddings=normalise, convert_to_tensor=True)
    vectors = model.encode_document(passages, **options)
    ranked = model.similarity(model.encode_query(queries, **options), vectors)
    return ranked.argmax(1).tolist(), float(vectors.norm(dim=1).min())


for dimensions in (None, 4):
    (plain, shortest), (again, _) = first(dimensions, False), first(dimensions, True)
    differ = sum(a != b for a, b in zip(plain, again))
    print(f"truncate_dim={dimensions}: shortest vector {shortest:.2f}; another first passage for {differ} of 100 queries")
    assert (shortest < 0.5, differ > 50) == (dimensions == 4, dimensions == 4), "the behaviour has changed"
PYTHON
