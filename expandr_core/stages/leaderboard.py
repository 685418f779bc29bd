"""Leaderboard: every system on every dataset, with means, deviations, tests and leakage.

Inputs, where PLACE is DATASET, or DATASET/PART of a dataset with parts:

measured/PLACE/SYSTEM/SAMPLE    evaluations (from the stages evaluate or evaluate_bm25)
queries/PLACE                   the queries' texts
audit/PLACE/SYSTEM              audits, if there are any

Writes

leaderboard.csv        a row for each system and dataset: metrics, deviations over samples, the test
                       against the system's baseline, and the system's means over datasets
leaderboard.json       all numbers, the means and what is missing in them, all tests, the audits
leaderboard.md         the same to read
differences.parquet    of each test: dataset, before, after, query_id, query, both scores, difference

Tests are those of the stage compare: nDCG@10, two-sided; the p-values of all steps on all datasets are
one family (Holm). Of several samples, each query has the mean.
"""

import json
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from expandr_core.errors import DataError
from expandr_core.evaluation.leaderboard import (
    MeasuredDataset,
    by_dataset,
    join_parts,
    means_over,
    over_datasets,
    summarise,
    without_nan,
)
from expandr_core.evaluation.leaderboard_text import render
from expandr_core.evaluation.metrics import METRICS
from expandr_core.evaluation.significance import (
    DIFFERENCES,
    Difference,
    Test,
    compare_queries,
    holm,
    query_differences,
)
from expandr_core.options.base import Options, Positive, added
from expandr_core.runtime.job import Job
from expandr_core.seeding import derive_seed
from expandr_core.stages.compare import METRIC, StepOptions

VERSION = 2
ROLE = "measure"
ISOLATION = "never"
CHANGES = pa.schema(
    [
        ("dataset", pa.string()),
        ("before", pa.string()),
        ("after", pa.string()),
        *DIFFERENCES,
        ("query", pa.string()),
    ]
)


class RankedSystem(Options):
    """A system of the leaderboard.

    `baseline` is the system that its p-value is about, or empty; `samples` the number of its seeds.
    """

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    title: str
    baseline: str = ""
    samples: Positive = 1


class LeaderboardOptions(Options):
    """What is ranked, and how strictly it is tested."""

    systems: tuple[RankedSystem, ...] = Field(min_length=1, description="In the order of rows.")
    datasets: tuple[MeasuredDataset, ...] = Field(min_length=1, description="In this order.")
    steps: tuple[StepOptions, ...] = Field(description="Tested on every dataset.")
    test: Test = Field(description="Paired test between two systems.")
    significance_level: float = Field(gt=0, lt=1, description="After Holm's correction.")
    warnings: tuple[str, ...] = added((), description="What makes numbers of it doubtful.")


OPTIONS = LeaderboardOptions


def place_of(dataset: str, part: str) -> str:
    """Return how inputs name a dataset, or a part of it.

    >>> place_of("scifact", ""), place_of("cqadupstack", "gis")
    ('scifact', 'cqadupstack/gis')
    """
    return f"{dataset}/{part}" if part else dataset


def run(job: Job) -> None:
    """Collect all numbers, test all steps, and write the four files."""
    options: LeaderboardOptions = job.options
    samples = by_dataset(_results(job))
    steps, changes = _tests(job)
    means = means_over(options.datasets)
    report = {
        "metric": METRIC,
        "test": options.test,
        "correction": "holm",
        "significance_level": options.significance_level,
        "systems": [system.model_dump() for system in options.systems],
        "datasets": [dataset.model_dump() for dataset in options.datasets],
        "results": _rows(options, samples, steps),
        "means": over_datasets(samples, means),
        "steps": steps,
        "leakage": _audits(job),
        **({"warnings": list(options.warnings)} if options.warnings else {}),
    }
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (job.out / "leaderboard.json").write_text(text)
    (job.out / "leaderboard.md").write_text(render(report, changes))
    _table(report).to_csv(job.out / "leaderboard.csv", index=False)
    pq.write_table(changes, job.out / "differences.parquet", compression="zstd")
    job.counts |= {
        "systems": len(options.systems),
        "datasets": len(options.datasets),
        "steps": len(steps),
        "significant_steps": sum(step["significant"] for step in steps),
    }


def _results(job: Job) -> pd.DataFrame:
    """Read the metrics of every evaluation."""
    rows = []
    for dataset in job.options.datasets:
        for part in dataset.parts:
            for system in job.options.systems:
                for sample in range(system.samples):
                    role = f"measured/{place_of(dataset.name, part)}/{system.name}/{sample}"
                    if role not in job.inputs:
                        raise DataError(f"there is no evaluation {role!r} among the inputs")
                    metrics = json.loads((job.inputs[role] / "metrics.json").read_text())
                    numbers = {name: metrics[name] for name in ("queries", *METRICS)}
                    place = {"system": system.name, "dataset": dataset.name, "part": part}
                    rows.append(place | {"sample": sample} | numbers)
    return pd.DataFrame(rows)


def _per_query(job: Job, dataset: MeasuredDataset, name: str) -> tuple[pa.Table, pa.Table]:
    """Read a system's nDCG@10 of each query of a dataset; see `leaderboard.join_parts`."""
    [system] = [each for each in job.options.systems if each.name == name]
    tables = {
        part: [
            pq.read_table(
                job.inputs[f"measured/{place_of(dataset.name, part)}/{name}/{sample}"]
                / "per_query.parquet"
            )
            for sample in range(system.samples)
        ]
        for part in dataset.parts
    }
    return join_parts(tables, METRIC)


def _tests(job: Job) -> tuple[list[dict[str, Any]], pa.Table]:
    """Test every step on every dataset; return the records and the queries' differences."""
    options: LeaderboardOptions = job.options
    names = {system.name for system in options.systems}
    found: list[tuple[MeasuredDataset, StepOptions, Difference]] = []
    tables = [CHANGES.empty_table()]
    for place, dataset in enumerate(options.datasets):
        texts = _texts(job, dataset)
        for step in options.steps:
            if unknown := {step.before, step.after} - names:
                raise DataError(
                    f"the step {step.question!r} names unknown systems: {sorted(unknown)}"
                )
            before, weighted_before = _per_query(job, dataset, step.before)
            after, weighted_after = _per_query(job, dataset, step.after)
            seed = derive_seed("leaderboard", job.seed)
            try:
                change = compare_queries(
                    weighted_before, weighted_after, METRIC, options.test, seed
                )
            except DataError as error:
                raise DataError(
                    f"on {dataset.name}, from {step.before!r} to {step.after!r}: {error}"
                ) from error
            found.append((dataset, step, change))
            rows = query_differences(before, after, METRIC)
            named = [pa.repeat(t, len(rows)) for t in (dataset.name, step.before, step.after)]
            queries = pa.array([texts[query_id] for query_id in rows["query_id"].to_pylist()])
            tables.append(pa.table([*named, *rows.columns, queries], schema=CHANGES))
        job.progress(place + 1, len(options.datasets), "datasets")
    corrected = holm([change.p for _, _, change in found])
    records = [
        {"dataset": dataset.name, **step.model_dump(), **change._asdict()}
        | {"corrected_p": p, "significant": p < options.significance_level}
        for (dataset, step, change), p in zip(found, corrected, strict=True)
    ]
    return records, pa.concat_tables(tables)


def _texts(job: Job, dataset: MeasuredDataset) -> dict[str, str]:
    """Read the queries of a dataset by the ids that `join_parts` gives them."""
    texts = {}
    for part in dataset.parts:
        table = pq.read_table(job.inputs[f"queries/{place_of(dataset.name, part)}"])
        prefix = f"{part}/" if part else ""
        pairs = zip(table["query_id"].to_pylist(), table["query"].to_pylist(), strict=True)
        texts |= {f"{prefix}{query_id}": text for query_id, text in pairs}
    return texts


def _rows(
    options: LeaderboardOptions, samples: pd.DataFrame, steps: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return a record for each dataset and system, with the test against its baseline."""
    summary = summarise(samples, ["dataset", "system"]).to_dict("index")
    queries = samples.groupby(["dataset", "system"], sort=False)["queries"].first().to_dict()
    tested = {(step["dataset"], step["before"], step["after"]): step for step in steps}
    rows = []
    for dataset in options.datasets:
        for system in options.systems:
            place: Any = dataset.name, system.name
            record = {
                "system": system.name,
                "dataset": dataset.name,
                "benchmark": dataset.benchmark,
                "domain": dataset.domain,
                "queries": queries[place],
                **summary[place],
            }
            step = tested.get((dataset.name, system.baseline, system.name), {})
            for name in ("difference", "p", "corrected_p", "significant", "wins", "losses"):
                record[name] = step.get(name)
            rows.append(without_nan(record))
    return rows


def _table(report: dict[str, Any]) -> pd.DataFrame:
    """Lay the results out flat: titles for names, and the means over datasets in every row."""
    titles = {system["name"]: system["title"] for system in report["systems"]}
    means = {(mean["system"], mean["benchmark"], mean["scope"]): mean for mean in report["means"]}
    rows = []
    for result in report["results"]:
        row = result | {"system": titles[result["system"]]}
        for scope, column in {
            "in-domain": "in_domain_mean",
            "out-of-domain": "out_of_domain_mean",
            "all": "benchmark_mean",
        }.items():
            mean = means.get((result["system"], result["benchmark"], scope))
            row[column] = mean[METRIC] if mean else None
            row[f"{column}_deviation"] = mean[f"{METRIC}_deviation"] if mean else None
            row[f"{column}_is_of"] = mean["title"] if mean else None
        rows.append(row)
    return pd.DataFrame(rows)


def _audits(job: Job) -> list[dict[str, Any]]:
    """Read the audits, in the order of datasets and systems."""
    found = []
    for dataset in job.options.datasets:
        for part in dataset.parts:
            for system in job.options.systems:
                place = place_of(dataset.name, part)
                role = f"audit/{place}/{system.name}"
                if role in job.inputs:
                    audit = json.loads((job.inputs[role] / "audit.json").read_text())
                    found.append({"place": place, "system": system.name, **audit})
    return found
