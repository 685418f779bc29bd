"""Audit: how much of a gain from expansions may be leakage (see `expandr_core.evaluation.leakage`).

Inputs: `queries`, `qrels`, `corpus`; `before`, the evaluation without expansions; `expansions-N` and
`after-N`, the expansions of each seed and the evaluation with them; and `training-N`, files of training
examples, if the models' training data is known. Writes

audit.json        shares of queries and expansions, and the gain in nDCG@10 with and without them
audit.parquet     query_id, query_in_training, passage_in_training, copied (the greatest share of an
                  expansion that is copied), before, after (means over the seeds)

A query is marked as copying if one of its expansions copies at least COPIED of its words.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.evaluation.leakage import (
    MARKS,
    relevant_passages,
    seen_in_training,
    summary,
    verbatim_share,
)
from expandr_core.evaluation.metrics import HEADLINE
from expandr_core.options.base import Options
from expandr_core.planning.workload import PlannedStep
from expandr_core.records import Passage
from expandr_core.runtime.job import Job

VERSION = 3
ROLE = "measure"
ISOLATION = "never"


class AuditOptions(Options):
    """No options."""


OPTIONS = AuditOptions
BYTES_GROW_WITH = "queries"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the queries whose texts are compared."""
    return {"queries": step.counts["queries"]}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every query is audited."""
    return {"queries": step.rows("queries")}


def run(job: Job) -> None:
    """Mark the queries, and compare the gain with and without the marked ones."""
    queries = _by_id(pq.read_table(job.inputs["queries"]), "query")
    before = _by_id(pq.read_table(job.inputs["before"] / "per_query.parquet"), HEADLINE)
    measured = [
        _by_id(pq.read_table(job.inputs[role] / "per_query.parquet"), HEADLINE)
        for role in _numbered(job, "after")
    ]
    ids = sorted(before)
    relevant = relevant_passages(pq.read_table(job.inputs["qrels"]), job.inputs["corpus"])
    shares = _verbatim_shares(job, relevant, set(ids))
    training = [job.inputs[role] for role in _numbered(job, "training")]
    scored = {query_id: queries[query_id] for query_id in ids}
    leaked, reused = seen_in_training(training, scored, relevant)
    copied = np.array([max(shares.get(query_id, [0.0])) for query_id in ids])
    rows = {
        "query_id": ids,
        "query_in_training": np.array([query_id in leaked for query_id in ids], bool),
        "passage_in_training": np.array([query_id in reused for query_id in ids], bool),
        "copied": copied,
        "before": np.array([before[query_id] for query_id in ids]),
        "after": np.array([np.mean([each[query_id] for each in measured]) for query_id in ids]),
    }
    pq.write_table(pa.table(rows), job.out / "audit.parquet", compression="zstd")
    all_shares = [share for query_id in ids for share in shares.get(query_id, [])]
    report = summary(rows, np.array(all_shares), audited=bool(training))
    (job.out / "audit.json").write_text(json.dumps(report, indent=1, allow_nan=False))
    job.counts |= {"queries": len(ids), "expansions": len(all_shares)}
    job.counts |= {mark: sum(rows[mark]) for mark in MARKS[:2]}
    job.counts["copying"] = report["expansions"]["copying"]


def _numbered(job: Job, role: str) -> list[str]:
    """Return the roles of a numbered input, in order."""
    found = [name for name in job.spec.inputs if name.startswith(f"{role}-")]
    return sorted(found, key=lambda name: int(name.removeprefix(f"{role}-")))


def _by_id(table: pa.Table, column: str) -> dict[str, Any]:
    return dict(zip(table["query_id"].to_pylist(), table[column].to_pylist(), strict=True))


def _verbatim_shares(
    job: Job, relevant: dict[str, list[Passage]], scored: set[str]
) -> dict[str, list[float]]:
    """Return, by query, the share that each expansion copies from the relevant passages."""
    shares: dict[str, list[float]] = {}
    roles = _numbered(job, "expansions")
    for done, role in enumerate(roles):
        for folder in job.shards(role):
            table = pq.read_table(folder / "expansions.parquet", columns=["query_id", "text"])
            for row in table.to_pylist():
                if row["query_id"] in scored:
                    passages = [each.content for each in relevant.get(row["query_id"], [])]
                    share = verbatim_share(row["text"], passages)
                    shares.setdefault(row["query_id"], []).append(share)
        job.progress(done + 1, len(roles), "seeds")
    return shares
