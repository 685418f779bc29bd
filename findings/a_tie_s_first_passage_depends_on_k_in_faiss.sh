#!/usr/bin/env bash
# Guess: `IndexFlatIP` is exact, so the first passage is the same whether the first 10 or the first 100 are asked for.
# Seen (faiss-cpu 1.15.1): of passages with the same vector, the first k by number are kept and returned backwards. So
# which of them ranks first, and a metric such as MRR@10, changes with k. `IndexFlatL2` returns them in order, so it
# ranks unit vectors unlike `IndexFlatIP`. Corpora have such duplicates: sort ties by id after the search.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import faiss
import numpy as np

query = np.eye(1, 4, dtype="float32")
passages = np.repeat(np.eye(2, 4, dtype="float32"), (150, 50), axis=0)  # 150 times the same passage, then another
relevant = 3
inner, distance = (kind(4) for kind in (faiss.IndexFlatIP, faiss.IndexFlatL2))
for index, expected in ((inner, {1: 0, 5: 4, 10: 9, 100: 99}), (distance, dict.fromkeys((1, 5, 10, 100), 0))):
    index.add(passages)
    found = {k: index.search(query, k)[1][0].tolist() for k in expected}
    ranks = {k: ranked.index(relevant) + 1 for k, ranked in found.items() if relevant in ranked}
    first = {k: ranked[0] for k, ranked in found.items()}
    print(f"{type(index).__name__}: first passage by k {first}; rank of passage 3 by k {ranks}")
    assert first == expected, "the behaviour has changed"
PYTHON
