"""Evaluate what two evaluations of the same queries come to together: gated, or their ranks fused.

Inputs: `alone` and `expanded` (from `evaluate`, of the same retriever without expansions and with),
`queries`, `qrels` and, unless ranks are fused, `gate`. A gate that decides after generation also needs
`retriever` and `expansions`. Writes the same files as `evaluate` and, if gated,

gate.parquet    query_id, and whether the query was searched with its expansions

The counts tell how many queries were, and how many calls of the LLM a gate before generation saves.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from expandr_core.encoders.encode import encoder_of
from expandr_core.errors import DataError
from expandr_core.evaluation.run_queries import measure
from expandr_core.options.base import Options, Positive
from expandr_core.options.retriever import EncodingOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.records import rows_with_ids
from expandr_core.retrieval.gate import Gate, read_gate
from expandr_core.retrieval.gate_features import describe_after, describe_before, encode_apart
from expandr_core.retrieval.run_fusion import chosen, fused
from expandr_core.runtime.job import Job

VERSION = 1
ROLE = "measure"
ISOLATION = "on-gpu"
EXPANDED, SEARCHED, SAVED = "expanded", "searched", "llm_calls_saved"  # counts of scored queries


class EvaluateRunsOptions(Options):
    """How two runs become one: `encoding` is that of the retriever, `depth` that of the runs."""

    how: Literal["gate", "rrf"]
    encoding: EncodingOptions
    depth: Positive


OPTIONS = EvaluateRunsOptions
BYTES_GROW_WITH = "queries"


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the queries."""
    return {"queries": step.counts["queries"]}


def predict(step: PlannedStep) -> dict[str, float]:
    """Predict that every query is measured."""
    return {"queries": step.rows("queries")}


def run(job: Job) -> None:
    """Put the runs together block by block, and measure."""
    options: EvaluateRunsOptions = job.options
    if (options.how == "gate") != ("gate" in job.inputs):
        raise DataError(f"how={options.how!r} and the input `gate` do not go together")
    if options.how == "rrf":

        def fuse(block: pa.Table, alone: pa.Table, expanded: pa.Table) -> pa.Table:
            return fused(_ids(block), alone, expanded, options.depth)

        measure(job, _by_blocks(job, fuse))
        return
    gate = read_gate(job.inputs["gate"])
    decide = _decider(job, gate)
    decisions: list[pa.Table] = []

    def choose(block: pa.Table, alone: pa.Table, expanded: pa.Table) -> pa.Table:
        expands = decide(block, alone, expanded)
        decisions.append(pa.table({"query_id": block["query_id"], "expanded": expands}))
        return chosen(_ids(block), alone, expanded, expands)

    measure(job, _by_blocks(job, choose))
    decided = pa.concat_tables(decisions).sort_by("query_id")
    pq.write_table(decided, job.out / "gate.parquet", compression="zstd")
    scores = pq.read_table(job.out / "per_query.parquet", columns=["query_id"])
    decided = decided.filter(pc.field("query_id").isin(scores["query_id"]))
    expands = int(np.count_nonzero(decided["expanded"].to_numpy()))
    written = len(decided) if gate.needs_text else expands
    job.counts |= {EXPANDED: expands, SEARCHED: len(decided), SAVED: len(decided) - written}


def _ids(block: pa.Table) -> list[str]:
    return block["query_id"].to_pylist()


def _decider(job: Job, gate: Gate) -> Callable[[pa.Table, pa.Table, pa.Table], NDArray[np.bool_]]:
    """Return what tells which queries of a block are expanded."""
    options: EvaluateRunsOptions = job.options
    if gate.mode != "after" or gate.policy != "learned":
        return lambda block, alone, _: gate.expands(describe_before(block, alone))
    encoder = encoder_of(job, options.encoding)

    def after(block: pa.Table, alone: pa.Table, expanded: pa.Table) -> NDArray[np.bool_]:
        return gate.expands(describe_after(block, alone, expanded, encode_apart(encoder, block)))

    return after


def _by_blocks(job: Job, together: Callable[[pa.Table, pa.Table, pa.Table], pa.Table]):
    """Return a search that reads both runs of a block and puts them together."""

    def run_of(role: str, block: pa.Table) -> pa.Table:
        path: Path = job.inputs[role] / "run.parquet"
        return rows_with_ids(path, "query_id", block["query_id"].unique())

    def search(
        blocks: Iterable[pa.Table], report: Callable[[int], None]
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        done = 0
        for block in blocks:
            yield block, together(block, run_of("alone", block), run_of("expanded", block))
            report(done := done + len(block))

    return search
