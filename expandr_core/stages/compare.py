"""Compare systems: their metrics, and for each step from one to another whether it is significant.

Inputs: one evaluation (from the stages evaluate or evaluate_bm25) per system, by its role. Writes

report.json            systems with metrics; steps with difference, p-values, clusters, wins and losses
report.md              the same as two tables to read
systems.parquet        the systems' metrics, one row each
differences.parquet    of each step: before, after, query_id, both scores, and their difference

Steps are tested on nDCG@10, two-sided; the p-values of all steps are corrected together (Holm).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from expandr_core.errors import DataError
from expandr_core.evaluation.markdown import format_p, markdown_table, warning_lines
from expandr_core.evaluation.metrics import METRICS, TITLES
from expandr_core.evaluation.significance import (
    DIFFERENCES,
    TEST_NAMES,
    Difference,
    Test,
    compare_queries,
    holm,
    query_differences,
    too_few_to_tell,
)
from expandr_core.options.base import Options, added
from expandr_core.runtime.job import Job
from expandr_core.seeding import derive_seed

VERSION = 3
ROLE = "measure"
ISOLATION = "never"
METRIC = "ndcg_at_10"
CHANGES = pa.schema([("before", pa.string()), ("after", pa.string()), *DIFFERENCES])


class System(Options):
    """What is measured; `role` names its evaluation among the inputs."""

    role: str = Field(pattern=r"^[a-z0-9_-]+$")
    title: str
    split: str


class StepOptions(Options):
    """A question about two systems, named by their roles."""

    before: str
    after: str
    question: str


class CompareOptions(Options):
    """What is compared, and how strictly."""

    systems: tuple[System, ...] = Field(min_length=1, description="In the order of the report.")
    steps: tuple[StepOptions, ...] = Field(description="The family that is corrected together.")
    test: Test = Field(description="Paired test between two systems.")
    significance_level: float = Field(gt=0, lt=1, description="After Holm's correction.")
    warnings: tuple[str, ...] = added((), description="What makes numbers of the report doubtful.")


OPTIONS = CompareOptions


class Step(NamedTuple):
    """The answer to one question; `change` holds the numbers (see Difference)."""

    before: str
    after: str
    question: str
    change: Difference
    corrected_p: float
    significant: bool


def run(job: Job) -> None:
    """Write the report."""
    options: CompareOptions = job.options
    systems = [
        system.model_dump() | json.loads((_folder(job, system.role) / "metrics.json").read_text())
        for system in options.systems
    ]
    steps = compare_systems(
        {system.role: _folder(job, system.role) for system in options.systems},
        options.steps,
        options.test,
        options.significance_level,
        job.seed,
    )
    report = {
        "metric": METRIC,
        "test": options.test,
        "correction": "holm",
        "significance_level": options.significance_level,
        "systems": systems,
        "steps": [as_record(step) for step in steps],
        **({"warnings": list(options.warnings)} if options.warnings else {}),
    }
    (job.out / "report.json").write_text(
        json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    )
    (job.out / "report.md").write_text(render(report))
    columns = ["role", "title", "split", "queries", *METRICS]
    rows = [{name: system[name] for name in columns} for system in systems]
    pq.write_table(pa.Table.from_pylist(rows), job.out / "systems.parquet", compression="zstd")
    differences = [CHANGES.empty_table(), *(_differences(job, step) for step in steps)]
    changes = pa.concat_tables(differences)
    pq.write_table(changes, job.out / "differences.parquet", compression="zstd")
    job.counts |= {
        "systems": len(systems),
        "steps": len(steps),
        "significant_steps": sum(step.significant for step in steps),
    }


def _folder(job: Job, role: str) -> Path:
    if role not in job.inputs:
        raise DataError(f"there is no evaluation of the system {role!r} among the inputs")
    return job.inputs[role]


def compare_systems(
    evaluations: dict[str, Path],
    steps: tuple[StepOptions, ...],
    test: Test,
    significance_level: float,
    seed: int,
) -> list[Step]:
    """Test all steps, and correct their p-values together.

    Args:
        evaluations: folder of each system's evaluation, by role.
        steps: pairs of roles, with the question they answer.
        test: see `significance.compare_queries`.
        significance_level: of the corrected p-values.
        seed: of the randomisation test.

    Raises:
        DataError: if a step names an unknown role, or systems measured on different queries.
    """
    changes = []
    for step in steps:
        unknown = {step.before, step.after} - evaluations.keys()
        if unknown:
            raise DataError(f"the step {step.question!r} names unknown systems: {sorted(unknown)}")
        try:
            changes.append(gain(evaluations[step.before], evaluations[step.after], test, seed))
        except DataError as error:
            raise DataError(f"from {step.before!r} to {step.after!r}: {error}") from error
    corrected = holm([change.p for change in changes])
    return [
        Step(step.before, step.after, step.question, change, p, p < significance_level)
        for step, change, p in zip(steps, changes, corrected, strict=True)
    ]


def gain(before: Path, after: Path, test: Test, seed: int) -> Difference:
    """Compare two evaluations by nDCG@10; a gain is a positive difference with a small p.

    Args:
        before: folder of an evaluation.
        after: folder of another one, of the same queries.
        test: see `significance.compare_queries`.
        seed: of the randomisation test.
    """
    return compare_queries(
        pq.read_table(before / "per_query.parquet"),
        pq.read_table(after / "per_query.parquet"),
        METRIC,
        test,
        derive_seed("compare", seed),
    )


def _differences(job: Job, step: Step) -> pa.Table:
    """Return the queries of a step with both scores, under the names of the two systems."""
    before, after = (
        pq.read_table(_folder(job, role) / "per_query.parquet")
        for role in (step.before, step.after)
    )
    rows = query_differences(before, after, METRIC)
    names = [pa.repeat(role, len(rows)) for role in (step.before, step.after)]
    return pa.table([*names, *rows.columns], schema=CHANGES)


def as_record(step: Step) -> dict[str, Any]:
    """Return a step as it stands in report.json: flat."""
    record = step._asdict()
    change: Difference = record.pop("change")
    return record | change._asdict()


def render(report: dict[str, Any]) -> str:
    """Render report.json as Markdown."""
    header = ["system", "split", "queries", *(TITLES[name] for name in METRICS)]
    systems = [
        [
            system["title"],
            system["split"],
            str(system["queries"]),
            *(f"{system[name]:.3f}" for name in METRICS),
        ]
        for system in report["systems"]
    ]
    titles = {system["role"]: system["title"] for system in report["systems"]}
    steps = [
        [
            step["question"],
            f"{titles[step['before']]} → {titles[step['after']]}",
            f"{step['difference']:+.3f}",
            format_p(step["p"]),
            format_p(step["corrected_p"]) + (" *" if step["significant"] else ""),
            f"{step['wins']} / {step['losses']}",
            str(step["clusters"]),
        ]
        for step in report["steps"]
    ]
    columns = ["question", "step", "difference", "p", "p (Holm)", "wins / losses", "observations"]
    level = report["significance_level"]
    return "\n".join(
        [
            "# Report",
            "",
            *warning_lines(report),
            *markdown_table(header, systems, left=2),
            "",
            f"Steps: difference in {TITLES[report['metric']]}, {TEST_NAMES[report['test']]}, two-sided, "
            f"Holm's correction over all steps; * p < {level:g}. Queries of one cluster are averaged "
            "and count as one observation; wins and losses count queries."
            + too_few_to_tell((step["clusters"] for step in report["steps"]), level),
            "",
            *markdown_table(columns, steps, left=2),
            "",
        ]
    )
