"""Audit the pairs: what they differ in besides the reward. Writes audit.json and audit.md.

Inputs: `pairs`, and the `rewards` that they were chosen from. It judges nothing, and always ends with
an artifact: `pair_audit.reason_to_stop` tells by its counts whether to go on.
"""

import json
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq

from expandr_core.options.base import Options
from expandr_core.preferences.audit import audit, render
from expandr_core.runtime.job import Job

VERSION = 2
ROLE = "data"
ISOLATION = "never"


class AuditPairsOptions(Options):
    """The audit has no options."""


OPTIONS = AuditPairsOptions


def run(job: Job) -> None:
    """Measure the pairs and the candidates of the first shards."""
    pairs = pq.read_table(job.inputs["pairs"] / "pairs.parquet").to_pylist()
    columns = ["query_id", "text", "similarity_to_positive", "similarity_to_answer",
               "retriever_reward", "self_reward"]  # fmt: skip
    candidates = (
        row
        for shard in job.shards("rewards")
        for row in pq.read_table(shard / "rewards.parquet", columns=columns).to_pylist()
    )
    facts = audit(pairs, candidates, job.spec.inputs["pairs"].counts)
    values: dict[str, Any] = asdict(facts)
    (job.out / "audit.json").write_text(json.dumps(values, indent=1, allow_nan=False))
    (job.out / "audit.md").write_text(render(facts))
    job.counts |= {name: value for name, value in values.items() if name != "margins"}
