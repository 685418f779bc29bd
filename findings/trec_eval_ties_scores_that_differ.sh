#!/usr/bin/env bash
# Guess: if all scores of a run differ, there are no ties, so every evaluation package ranks it alike.
# Seen (pytrec-eval-terrier 0.5.11, ir-measures 0.4.3): pytrec_eval turns scores into 32-bit floats. Scores that
# differ only in the last digits of a 64-bit float become ties there, and the larger document id goes first.
# ir_measures computes RR with trec_eval, but RR@10 with the 64-bit scores: for one run, RR is 1/2 and RR@10 is 1.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ir-measures==0.4.3 pytrec-eval-terrier==0.5.11
"$folder/venv/bin/python" - <<'PYTHON'
import ir_measures
from ir_measures import RR, nDCG

measures = [RR @ 10, RR, nDCG @ 1]
# Each case: the documents in the order of their scores, the first one relevant; the scores; the measures' values.
for documents, scores, expected in (
    ("az", (0.8300001, 0.83), (1.0, 1.0, 1.0)),
    ("az", (0.83000001, 0.83), (1.0, 0.5, 0.0)),
    ("za", (0.83000001, 0.83), (1.0, 1.0, 1.0)),  # a tie would give RR@10 1/2
):
    assert scores[0] > scores[1]
    values = ir_measures.calc_aggregate(measures, {"q": {documents[0]: 1}}, {"q": dict(zip(documents, scores))})
    seen = tuple(values[measure] for measure in measures)
    print(f"{documents[0]} (relevant) {scores[0]}, {documents[1]} {scores[1]}:", dict(zip(map(str, measures), seen)))
    assert seen == expected, "the behaviour has changed"
PYTHON
