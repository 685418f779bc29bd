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

qrels = {"q": {"a": 1}}
for scores, expected in (((0.8300001, 0.83), (1.0, 1.0, 1.0)), ((0.83000001, 0.83), (1.0, 0.5, 0.0))):
    run = {"q": dict(zip(("a", "z"), scores))}
    assert scores[0] > scores[1]
    measures = [RR @ 10, RR, nDCG @ 1]
    values = ir_measures.calc_aggregate(measures, qrels, run)
    print(f"relevant {scores[0]}, other {scores[1]}:", {str(measure): values[measure] for measure in measures})
    assert tuple(values[measure] for measure in measures) == expected, "the behaviour has changed"
PYTHON
