"""Ablation: the table of a list of changes, from the comparison of what they reach.

Input: `comparison` (from `compare`). Writes ablation.json, ablation.csv and ablation.md. What the lines
have cost is an option, so that a table with other costs is another artifact.
"""

import json

import pandas as pd
from pydantic import Field

from expandr_core.evaluation.ablation import TableRow, ablation_of, flat, render_ablation
from expandr_core.evaluation.comparison import read_comparison
from expandr_core.options.base import Options
from expandr_core.runtime.job import Job

VERSION = 2
ROLE = "measure"
ISOLATION = "never"


class AblationOptions(Options):
    """The rows of the table, and which system is the query alone."""

    rows: tuple[TableRow, ...] = Field(min_length=1)
    query: str


OPTIONS = AblationOptions


def run(job: Job) -> None:
    """Lay the table out, and write it in three formats."""
    options: AblationOptions = job.options
    comparison = read_comparison(job.inputs["comparison"])
    ablation = ablation_of(comparison, options.rows, options.query)
    text = json.dumps(ablation, indent=1, ensure_ascii=False, allow_nan=False)
    (job.out / "ablation.json").write_text(text, encoding="utf-8")
    (job.out / "ablation.md").write_text(render_ablation(json.loads(text)), encoding="utf-8")
    pd.DataFrame(flat(ablation)).to_csv(job.out / "ablation.csv", index=False)
    job.counts["lines"] = len(options.rows)
    job.counts["without_result"] = sum(bool(row.error) for row in options.rows)
