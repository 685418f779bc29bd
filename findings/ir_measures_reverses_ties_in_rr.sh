#!/usr/bin/env bash
# Guess: reciprocal rank at a cutoff is the same whichever evaluation package computes it.
# Seen (ir-measures 0.4.3 with pytrec-eval-terrier 0.5.11): documents of equal score are put in opposite
# orders. pytrec_eval's `recip_rank` follows trec_eval, which puts the larger document id first; ir_measures
# gives RR@10 to its MS MARCO provider, which puts the smaller id first. On a run in which everything is tied
# the two differ by as much as the measure can. Exported runs should therefore have no ties.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ir-measures==0.4.3 pytrec-eval-terrier==0.5.11
"$folder/venv/bin/python" - <<'PYTHON'
import ir_measures
import pytrec_eval
from ir_measures import RR, Qrel, ScoredDoc

documents = ["a", "b", "c", "d"]
relevant = "a"
run = {"q": dict.fromkeys(documents, 1.0)}
[trec] = pytrec_eval.RelevanceEvaluator({"q": {relevant: 1}}, {"recip_rank"}).evaluate(run).values()
at_10 = ir_measures.calc_aggregate(
    [RR @ 10], [Qrel("q", relevant, 1)], [ScoredDoc("q", document, 1.0) for document in documents]
)[RR @ 10]
print(f"four tied documents, the first by id relevant: trec_eval {trec['recip_rank']}, RR@10 {at_10}")
assert (trec["recip_rank"], at_10) == (0.25, 1.0), "the behaviour has changed"
PYTHON
