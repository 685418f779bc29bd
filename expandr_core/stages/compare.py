"""Compare: every system on every dataset, with means, tests of contrasts, audits, and a verdict.

Inputs, where DATASET is NAME, or NAME/SUBSET of a dataset with subsets:

measured/DATASET/SYSTEM/SEED    evaluations (from the stages evaluate or evaluate_bm25), seeds from 0
queries/DATASET                 the queries' texts
audit/DATASET/SYSTEM            audits, if there are any

Writes

comparison.json        all numbers; `schema` is the version of its layout
comparison.csv         a row for each dataset and system: metrics, their deviations over seeds, the
                       contrast with the system's baseline, and the system's means over datasets
report.md              comparison.json to read
differences.parquet    of each contrast: dataset, before, after, query_id, both scores, difference, query

Contrasts are tested on nDCG@10, two-sided, and corrected together (Holm). Of several seeds, each query
has the mean. Systems that were also trained with several seeds have one subset per seed (`subsets_are`):
each seed's queries are paired with those of the same seed.
"""

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import (
    SCHEMA,
    Contrast,
    MeasuredDataset,
    SubsetsAre,
    System,
    corrected,
    examples,
    join_subsets,
    titles_of,
)
from expandr_core.evaluation.kept_share import LEVEL, kept_share
from expandr_core.evaluation.means import means_over, over_datasets, over_subsets, results
from expandr_core.evaluation.metrics import HEADLINE, METRICS
from expandr_core.evaluation.render import render
from expandr_core.evaluation.significance import (
    DIFFERENCES,
    Difference,
    both_scores,
    compare_queries,
    query_differences,
)
from expandr_core.evaluation.verdict import Kept, verdict
from expandr_core.options.base import Options, added
from expandr_core.options.evaluation import SignificanceOptions
from expandr_core.planning.workload import PlannedStep
from expandr_core.runtime.job import Job
from expandr_core.seeding import derive_seed

VERSION = 9
ROLE = "measure"
ISOLATION = "never"
CHANGES = pa.schema(
    [
        *((name, pa.string()) for name in ("dataset", "before", "after")),
        *DIFFERENCES,
        ("query", pa.string()),
    ]
)
_MEANS = {
    "in-domain": "in_domain_mean",
    "out-of-domain": "out_of_domain_mean",
    "all": "benchmark_mean",
}


class CompareOptions(Options):
    """What is compared, and how strictly."""

    systems: tuple[System, ...] = Field(min_length=1, description="In the order of the report.")
    datasets: tuple[MeasuredDataset, ...] = Field(min_length=1, description="In this order.")
    contrasts: tuple[Contrast, ...] = Field(description="The family that is corrected together.")
    significance: SignificanceOptions = Field(description="When a difference counts.")
    kept: Kept | None = Field(
        default=None, description="The models that are kept, if any were chosen."
    )
    warnings: tuple[str, ...] = Field(default=(), description="Why numbers may be wrong.")
    notes: tuple[str, ...] = added((), description="Sentences at the end of the verdict.")
    subsets_are: SubsetsAre = added(
        "parts",
        description="Parts of a dataset, whose mean is its result; or one for each seed that everything "
        "was made with, of the same queries ('seeds') or of queries of its own ('worlds').",
    )


OPTIONS = CompareOptions


def workload(step: PlannedStep) -> dict[str, float]:
    """Return the systems, and the results of all of them."""
    measured = [made for role, made in step.inputs.items() if role.startswith("measured/")]
    return {"systems": len(measured), "results": sum(each.counts["queries"] for each in measured)}


def run(job: Job) -> None:
    """Collect all numbers, test all contrasts, and write the four files."""
    options: CompareOptions = job.options
    _require_systems(options)
    scores = over_subsets(_measured(job))
    contrasts, differences = _contrasts(job)
    comparison = {
        "schema": SCHEMA,
        "metric": HEADLINE,
        "test": options.significance.test,
        "correction": "holm",
        "significance_level": options.significance.significance_level,
        "systems": [system.model_dump() for system in options.systems],
        "datasets": [dataset.model_dump() for dataset in options.datasets],
        "results": results(scores, options.systems, options.datasets, contrasts),
        "means": over_datasets(scores, means_over(options.datasets)),
        "contrasts": contrasts,
        "examples": examples(differences),
        "leakage": _audits(job),
        "warnings": list(options.warnings),
        "kept": options.kept and options.kept.model_dump(exclude_defaults=True),
    }
    if options.subsets_are != "parts":
        comparison["subsets_are"] = options.subsets_are
    if options.kept and options.kept.distilled:
        comparison["kept_share"] = list(_kept_shares(job, options.kept))
    comparison["verdict"] = verdict(comparison)._asdict()
    comparison["verdict"]["sentences"] += options.notes
    text = json.dumps(comparison, indent=1, ensure_ascii=False, allow_nan=False)
    (job.out / "comparison.json").write_text(text, encoding="utf-8")
    (job.out / "report.md").write_text(render(json.loads(text)), encoding="utf-8")
    _table(comparison).to_csv(job.out / "comparison.csv", index=False)
    pq.write_table(differences, job.out / "differences.parquet", compression="zstd")
    job.counts |= {
        "systems": len(options.systems),
        "datasets": len(options.datasets),
        "contrasts": len(contrasts),
        "significant_contrasts": sum(each["significant"] for each in contrasts),
    }


def _require_systems(options: CompareOptions) -> None:
    """Check that every system that is asked about is measured."""
    asked = [(each.question, {each.before, each.after}) for each in options.contrasts]
    if options.kept:
        kept = {options.kept.expanded, options.kept.alone, options.kept.distilled} - {""}
        asked.append((options.kept.reason, kept))
    for about, names in asked:
        unknown = names - {system.name for system in options.systems}
        if unknown:
            raise DataError(f"{about!r} is about systems that are not measured: {sorted(unknown)}")


def _measured(job: Job) -> pd.DataFrame:
    """Read the metrics of every evaluation."""
    options: CompareOptions = job.options
    rows = []
    for dataset in options.datasets:
        for number, (subset, key) in enumerate(dataset.keys().items()):
            for system in options.systems:
                for seed in range(system.seeds):
                    role = f"measured/{key}/{system.name}/{seed}"
                    if role not in job.inputs:
                        raise DataError(f"there is no evaluation {role!r} among the inputs")
                    metrics = json.loads((job.inputs[role] / "metrics.json").read_text())
                    names = {"system": system.name, "dataset": dataset.name, "subset": subset}
                    names |= {"seed": seed}
                    if options.subsets_are != "parts":
                        names |= {"subset": "", "seed": number}
                    rows.append(names | {name: metrics[name] for name in ("queries", *METRICS)})
    return pd.DataFrame(rows)


def _contrasts(job: Job) -> tuple[list[dict[str, Any]], pa.Table]:
    """Test every contrast on every dataset; return the records and the queries' differences."""
    options: CompareOptions = job.options
    systems = {system.name: system for system in options.systems}
    test, seed = options.significance.test, derive_seed("compare", job.seed)
    tested: list[tuple[str, Contrast, Difference, frozenset[bytes]]] = []
    tables = [CHANGES.empty_table()]
    for done, dataset in enumerate(options.datasets):
        texts = _texts(job, dataset)
        for contrast in options.contrasts:
            before, after = (
                _per_query(job, dataset, systems[name])
                for name in (contrast.before, contrast.after)
            )
            try:
                change = compare_queries(before[1], after[1], HEADLINE, test, seed)
            except DataError as error:
                raise DataError(
                    f"on {dataset.name}, from {contrast.before!r} to {contrast.after!r}: {error}"
                ) from error
            scores = both_scores(before[1], after[1], HEADLINE)
            tested.append((dataset.name, contrast, change, scores))
            rows = query_differences(before[0], after[0], HEADLINE)
            names = (dataset.name, contrast.before, contrast.after)
            columns = [*(pa.repeat(name, len(rows)) for name in names), *rows.columns]
            columns.append(pa.array([texts[query_id] for query_id in rows["query_id"].to_pylist()]))
            tables.append(pa.table(columns, schema=CHANGES))
        job.progress(done + 1, len(options.datasets), "datasets")
    level = options.significance.significance_level
    return corrected(tested, level, test), pa.concat_tables(tables)


def _kept_shares(job: Job, kept: Kept) -> Iterator[dict[str, Any]]:
    """Yield the share of the expansions' gain that the distilled encoder keeps, on every dataset."""
    options: CompareOptions = job.options
    systems = {system.name: system for system in options.systems}
    for dataset in options.datasets:
        before, whole, part = (
            _per_query(job, dataset, systems[name])[1]
            for name in (kept.alone, kept.expanded, kept.distilled)
        )
        seed = derive_seed("compare", job.seed, "kept share")
        found = kept_share(before, whole, part, HEADLINE, seed)
        yield {"dataset": dataset.name, "level": LEVEL, **found._asdict()}


def _per_query(job: Job, dataset: MeasuredDataset, system: System) -> tuple[pa.Table, pa.Table]:
    """Read a system's nDCG@10 of each query of a dataset; see `join_subsets`."""
    options: CompareOptions = job.options
    several_seeds = any(each.seeds > 1 for each in options.systems)
    tables = {
        subset: [
            pq.read_table(job.inputs[f"measured/{key}/{system.name}/{seed}"] / "per_query.parquet")
            for seed in range(system.seeds)
        ]
        for subset, key in dataset.keys().items()
    }
    return join_subsets(tables, several_seeds, options.subsets_are)


def _texts(job: Job, dataset: MeasuredDataset) -> dict[str, str]:
    """Read the queries of a dataset by the ids that `join_subsets` gives them."""
    texts = {}
    for subset, key in dataset.keys().items():
        table = pq.read_table(job.inputs[f"queries/{key}"], columns=["query_id", "query"])
        prefix = f"{subset}/" if subset else ""
        for row in table.to_pylist():
            texts[prefix + row["query_id"]] = row["query"]
    return texts


def _audits(job: Job) -> list[dict[str, Any]]:
    """Read the audits, in the order of datasets and systems."""
    options: CompareOptions = job.options
    audits = []
    for dataset in options.datasets:
        for key in dataset.keys().values():
            for system in options.systems:
                role = f"audit/{key}/{system.name}"
                if role in job.inputs:
                    audit = json.loads((job.inputs[role] / "audit.json").read_text())
                    audits.append({"dataset": key, "system": system.name, **audit})
    return audits


def _table(comparison: dict[str, Any]) -> pd.DataFrame:
    """Lay the results out flat: titles for names, and the means over datasets in every row."""
    titles = titles_of(comparison)
    means = {(m["system"], m["benchmark"], m["scope"]): m for m in comparison["means"]}
    rows = []
    for result in comparison["results"]:
        row = result | {"system": titles[result["system"]]}
        for scope, column in _MEANS.items():
            mean = means.get((result["system"], result["benchmark"], scope), {})
            row[column] = mean.get(HEADLINE)
            row[f"{column}_deviation"] = mean.get(f"{HEADLINE}_deviation")
            row[f"{column}_is_of"] = mean.get("title")
        rows.append(row)
    return pd.DataFrame(rows)
