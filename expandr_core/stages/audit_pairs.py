"""Audit the pairs: how chosen and rejected texts differ. Writes pair_audit.json and pair_audit.md.

Inputs: `pairs`, and unless they are imported the `rewards` that they were chosen from. The stage
measures and never fails the run: `preferences.audit.reason_to_stop` decides by its counts.
"""

import json

import pyarrow.parquet as pq

from expandr_core.options.base import Options
from expandr_core.planning.workload import PlannedStep
from expandr_core.preferences.audit import audit
from expandr_core.preferences.audit_page import render
from expandr_core.preferences.pairs import RETRIEVAL
from expandr_core.preferences.rewards import names
from expandr_core.runtime.job import Job

VERSION = 3
ROLE = "data"
ISOLATION = "never"


class AuditPairsOptions(Options):
    """The audit has no options."""


OPTIONS = AuditPairsOptions


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the pairs to read."""
    return {"pairs": step.counts["pairs"]}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict pairs that nothing speaks against."""
    alike = {"chosen_longer": 0, "rejected_longer": 0, "length_p": 1.0, "agreement": 1.0}
    return {"pairs": step.inputs["pairs"].counts["pairs"], "length_agreement": 0.0, **alike}


def run(job: Job) -> None:
    """Measure the pairs and the candidates of the first shards."""
    pairs = pq.read_table(job.inputs["pairs"] / "pairs.parquet").to_pylist()
    columns = ["query_id", "text", "reward", *(f"{name}_similarity" for name in names())]
    if f"query_{RETRIEVAL}" in pairs[0]:
        columns += [RETRIEVAL, *(f"{name}_reward" for name in names())]
    candidates = (
        row
        for shard in (job.shards("rewards") if "rewards" in job.spec.inputs else ())
        for row in pq.read_table(shard / "rewards.parquet", columns=columns).to_pylist()
    )
    inputs = job.spec.inputs
    rewarded = inputs["rewards"].counts if "rewards" in inputs else {}
    found = audit(pairs, candidates, inputs["pairs"].counts, rewarded)
    values = found.facts()
    (job.out / "pair_audit.json").write_text(json.dumps(values, indent=1, allow_nan=False))
    (job.out / "pair_audit.md").write_text(render(found))
    lists = ("margins", "bin", "retrieval")
    job.counts |= {name: value for name, value in values.items() if name not in lists}
