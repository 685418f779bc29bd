#!/usr/bin/env bash
# Guess: a BM25 ranking has the passages that share a word with the query, so a query of unknown words finds nothing.
# Seen (bm25s 0.3.16, pytrec-eval-terrier 0.5.11): `retrieve` fills up to k with passages of score 0, the last of the
# corpus first. trec_eval counts them like any other: a query without one known word reaches a reciprocal rank of 1 or
# 0.25 and a recall of 1 by the order of the corpus alone; a ranking of the matches has 0. Drop scores of 0.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check bm25s==0.3.16 pytrec-eval-terrier==0.5.11
"$folder/venv/bin/python" - <<'PYTHON'
import bm25s
import pytrec_eval

TEXTS = {"d1": "mitral valve", "d2": "renal artery", "d3": "optic nerve", "d4": "femoral vein"}
JUDGE = pytrec_eval.RelevanceEvaluator({"q": {"d4": 1}}, {"recip_rank", "recall_5"})


def measures(ids, matches_only):
    bm25 = bm25s.BM25()
    bm25.index(bm25s.tokenize([TEXTS[each] for each in ids], show_progress=False), show_progress=False)
    query = bm25s.tokenize(["thigh blood vessel"], show_progress=False)  # no passage has any of its words
    found, scores = bm25.retrieve(query, k=len(ids), show_progress=False)
    ranked = [(ids[n], float(s)) for n, s in zip(found[0], scores[0]) if s > 0 or not matches_only]
    # trec_eval orders equal scores by id; scores by rank keep bm25s's own order
    run = {id_: score - rank * 1e-3 for rank, (id_, score) in enumerate(ranked)}
    result = JUDGE.evaluate({"q": run}).get("q", {"recip_rank": 0.0, "recall_5": 0.0})
    print(f"corpus {' '.join(ids)}, {'matches only' if matches_only else 'as retrieved'}: {ranked} {result}")
    return result["recip_rank"], result["recall_5"]


ids = list(TEXTS)
seen = [measures(order, matches_only) for matches_only in (False, True) for order in (ids, ids[::-1])]
assert seen == [(1.0, 1.0), (0.25, 1.0), (0.0, 0.0), (0.0, 0.0)], "the behaviour has changed"
PYTHON
