"""What systems reach on datasets, and the means over these.

A dataset's result is the unweighted mean over its subsets, if it has any. A system that is measured with
several seeds has the mean and the standard deviation (n - 1) over them, on each dataset and in each mean
over datasets. Means are taken within a benchmark, never across, and are called after all of its datasets
only if all are there.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from expandr_core.data.catalog import BENCHMARKS, Benchmark, Domain
from expandr_core.evaluation.comparison import MeasuredDataset, System
from expandr_core.evaluation.metrics import METRICS

SCOPES: tuple[Domain | str, ...] = ("in-domain", "out-of-domain", "all")
_TESTED = ("difference", "p", "corrected_p", "significant", "effect", "wins", "losses")


class Mean(NamedTuple):
    """A mean over datasets.

    Attributes:
        benchmark: whose datasets.
        scope: one of SCOPES.
        datasets: those that are there.
        missing: the rest of the benchmark's.
        title: what it may be called.
    """

    benchmark: Benchmark
    scope: str
    datasets: tuple[str, ...]
    missing: tuple[str, ...]
    title: str


def means_over(datasets: Sequence[MeasuredDataset]) -> list[Mean]:
    """List the means that can be taken over these datasets.

    >>> two = [MeasuredDataset(name=name, benchmark="BEIR", domain=domain)
    ...        for name, domain in {"nq": "in-domain", "scifact": "out-of-domain"}.items()]
    >>> [mean.title for mean in means_over(two)]
    ['BEIR, in-domain (1 of 4)', 'BEIR, out-of-domain (1 of 11)', 'BEIR, mean of 2 of 15']
    """
    means = []
    benchmarks: dict[Benchmark, None] = dict.fromkeys(each.benchmark for each in datasets)
    for benchmark in benchmarks:
        for scope in SCOPES:
            present = tuple(
                dataset.name
                for dataset in datasets
                if dataset.benchmark == benchmark and scope in (dataset.domain, "all")
            )
            complete = [
                name
                for name, each in BENCHMARKS.get(benchmark, {}).items()
                if scope in (each.domain, "all")
            ]
            if present:
                missing = tuple(name for name in complete if name not in present)
                title = _title(benchmark, scope, len(present), len(complete))
                means.append(Mean(benchmark, scope, present, missing, title))
    return means


def _title(benchmark: Benchmark, scope: str, present: int, total: int) -> str:
    if benchmark == "other":
        return f"other datasets, mean of {present}"
    if scope != "all":
        return f"{benchmark}, {scope} ({present} of {total})"
    if present < total:
        return f"{benchmark}, mean of {present} of {total}"
    return f"{benchmark}, mean of all {total}"


def over_subsets(measured: pd.DataFrame) -> pd.DataFrame:
    """Average the subsets of each dataset without weights.

    Args:
        measured: system, dataset, subset, seed, queries, and METRICS.

    Returns:
        system, dataset, seed, queries (of all subsets), and METRICS.
    """
    groups = measured.groupby(["system", "dataset", "seed"], sort=False)
    return groups[list(METRICS)].mean().join(groups["queries"].sum()).reset_index()


def over_seeds(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return mean and deviation over the seeds of each group.

    Args:
        scores: the columns `by`, and METRICS; one row per seed.
        by: what a group has in common.

    Returns:
        Indexed by `by`: METRICS, `<metric>_deviation` (NaN for a single seed), and `seeds`.
    """
    groups = scores.groupby(by, sort=False)[list(METRICS)]
    deviations = groups.std(ddof=1).add_suffix("_deviation")
    return groups.mean().join(deviations).join(groups.size().rename("seeds"))


def over_datasets(scores: pd.DataFrame, means: Iterable[Mean]) -> list[dict[str, Any]]:
    """Average each seed over the datasets of a mean, then the seeds.

    Args:
        scores: see `over_subsets`.
        means: see `means_over`.

    Returns:
        Rows with system, the fields of the mean, METRICS and their deviations.
    """
    rows = []
    for mean in means:
        inside = scores[scores["dataset"].isin(mean.datasets)]
        by_seed = inside.groupby(["system", "seed"], sort=False)[list(METRICS)].mean()
        for record in (
            over_seeds(by_seed.reset_index(), ["system"]).reset_index().to_dict("records")
        ):
            rows.append(without_nan({"system": record.pop("system"), **mean._asdict(), **record}))
    return rows


def results(
    scores: pd.DataFrame,
    systems: Sequence[System],
    datasets: Sequence[MeasuredDataset],
    contrasts: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return a record for each dataset and system, with the contrast to the system's baseline.

    Args:
        scores: see `over_subsets`.
        systems: in the order of the records.
        datasets: in the order of the records.
        contrasts: see `corrected`.
    """
    by = ["dataset", "system"]
    summary = over_seeds(scores, by).to_dict("index")
    queries = scores.groupby(by, sort=False)["queries"].first().to_dict()
    tested = {(each["dataset"], each["before"], each["after"]): each for each in contrasts}
    rows = []
    for dataset in datasets:
        for system in systems:
            cell: Any = dataset.name, system.name
            contrast = tested.get((dataset.name, system.baseline, system.name), {})
            rows.append(
                without_nan(
                    {
                        "system": system.name,
                        "dataset": dataset.name,
                        "benchmark": dataset.benchmark,
                        "domain": dataset.domain,
                        "queries": queries[cell],
                        **summary[cell],
                        **{name: contrast.get(name) for name in _TESTED},
                    }
                )
            )
    return rows


def without_nan(record: dict[Any, Any]) -> dict[str, Any]:
    """Turn numpy's numbers into Python's, and NaN into None, as JSON needs them.

    >>> without_nan({"a": np.float64("nan"), "b": np.int64(2), "c": "d"})
    {'a': None, 'b': 2, 'c': 'd'}
    """
    plain = {name: v.item() if isinstance(v, np.generic) else v for name, v in record.items()}
    return {n: None if isinstance(v, float) and np.isnan(v) else v for n, v in plain.items()}
