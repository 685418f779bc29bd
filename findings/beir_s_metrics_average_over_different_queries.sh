#!/usr/bin/env bash
# Guess: `evaluate` and `evaluate_custom` of BEIR average over the same queries.
# Seen (beir 2.2.0, pytrec-eval-terrier 0.5.11): if the results lack a query of the qrels, for instance because a
# lexical search or a filter returned nothing, NDCG, MAP, recall and precision are means over the queries that the
# results have, but MRR and capped recall are divided by the number of queries in the qrels. Recall is then 1 and
# capped recall 0.5 for the same results, and a retriever gains NDCG by returning nothing for its hard queries. An
# empty dict for the query counts as 0 in all of them.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps beir==2.2.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pytrec-eval-terrier==0.5.11 torch==2.13.0 tqdm requests numpy
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from beir.retrieval.evaluation import EvaluateRetrieval

qrels = {"q1": {"a": 1}, "q2": {"b": 1}}
for results, expected in (
    ({"q1": {"a": 1.0}}, (1.0, 1.0, 0.5, 0.5)),
    ({"q1": {"a": 1.0}, "q2": {}}, (0.5, 0.5, 0.5, 0.5)),
):
    ndcg, _, recall, _ = EvaluateRetrieval.evaluate(qrels, results, [10])
    mrr, capped = (EvaluateRetrieval.evaluate_custom(qrels, results, [10], name) for name in ("mrr", "recall_cap"))
    print(f"results of {len(results)} of 2 queries:", {**ndcg, **recall, **mrr, **capped})
    assert tuple({**ndcg, **recall, **mrr, **capped}.values()) == expected, "the behaviour has changed"
PYTHON
