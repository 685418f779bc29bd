"""The numbers of a comparison: what systems reach on datasets, means over these, and tests of contrasts.

A dataset's result is the unweighted mean over its subsets, if it has any. A system that is measured with
several seeds has the mean and the standard deviation (n - 1) over them, on each dataset and in each mean
over datasets. Means are taken within a benchmark, never across, and are called after all of its datasets
only if all are there. The p-values of all contrasts on all datasets are one family (Holm).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from expandr_core.data.catalog import BENCHMARKS, Benchmark, Domain
from expandr_core.errors import DataError
from expandr_core.evaluation.metrics import HEADLINE, METRICS
from expandr_core.evaluation.significance import Difference, fewest_to_tell, holm
from expandr_core.options.base import Options, Positive

SCHEMA = 1  # of comparison.json
SHOWN = 5  # wins and losses per contrast
SCOPES: tuple[Domain | str, ...] = ("in-domain", "out-of-domain", "all")
_DIGITS = 12  # so that a mean of equal scores equals them, and is no win
_TESTED = ("difference", "p", "corrected_p", "significant", "effect", "wins", "losses")


class System(Options):
    """A system that is measured."""

    name: str = Field(pattern=r"^[a-z0-9_-]+$")
    title: str
    baseline: str = Field(default="", description="System that tables compare it with, if any.")
    seeds: Positive = Field(default=1, description="How many evaluations of it there are.")


class Contrast(Options):
    """A question about two systems, tested on every dataset."""

    before: str
    after: str
    question: str


class MeasuredDataset(Options):
    """A dataset that is measured on; one without subsets has the subset ""."""

    name: str
    benchmark: Benchmark = "other"
    domain: Domain = "other"
    subsets: tuple[str, ...] = ("",)

    def keys(self) -> dict[str, str]:
        """Return by subset how inputs name it.

        >>> MeasuredDataset(name="scifact").keys()
        {'': 'scifact'}
        >>> MeasuredDataset(name="cqadupstack", subsets=("gis", "tex")).keys()
        {'gis': 'cqadupstack/gis', 'tex': 'cqadupstack/tex'}
        """
        return {subset: dataset_key(self.name, subset) for subset in self.subsets}


def dataset_key(dataset: str, subset: str) -> str:
    """Return how inputs name a dataset, or a subset of it."""
    return f"{dataset}/{subset}" if subset else dataset


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


def join_subsets(subsets: dict[str, list[pa.Table]], rounded: bool) -> tuple[pa.Table, pa.Table]:
    """Join what a system reaches on each query: mean over seeds, all subsets together.

    Args:
        subsets: the per-query tables (query_id, cluster, HEADLINE) of each seed, by subset.
        rounded: whether scores are compared with means over seeds, which are not exact.

    Returns:
        Two tables with query_id (after "SUBSET/", if there are subsets), cluster and HEADLINE: once as
        it is, and once weighted so that the mean over all queries is the unweighted mean of the
        subsets' means. A test of the weighted one is a test of the dataset's result.

    Raises:
        DataError: if the seeds were not measured on the same queries.

    With one query in subset a and two in b, the three weigh 3 / (2 * 1) and twice 3 / (2 * 2):

    >>> tables = {subset: [pa.table({"query_id": ids, "cluster": ids, HEADLINE: [1.0] * len(ids)})]
    ...           for subset, ids in {"a": ["1"], "b": ["1", "2"]}.items()}
    >>> [table.to_pydict()[HEADLINE] for table in join_subsets(tables, rounded=False)]
    [[1.0, 1.0, 1.0], [1.5, 0.75, 0.75]]
    """
    frames = []
    for subset, seeds in subsets.items():
        rows = pd.concat([each.select(list(_SCORED.names)).to_pandas() for each in seeds])
        frame = rows.groupby(["query_id", "cluster"], sort=True)[HEADLINE].mean().reset_index()
        if len(rows) != len(seeds) * len(frame):
            raise DataError(
                f"the {len(seeds)} seeds of a system were measured on different queries; measure all "
                "of them on the same data"
            )
        if rounded:
            frame[HEADLINE] = frame[HEADLINE].round(_DIGITS)
        prefix = f"{subset}/" if subset else ""
        frame[["query_id", "cluster"]] = prefix + frame[["query_id", "cluster"]]
        frames.append(frame)
    # A query of a small subset counts more; without subsets the weight is exactly 1.
    total = sum(map(len, frames))
    weights = np.concatenate([np.full(len(f), total / (len(frames) * len(f))) for f in frames])
    joined = pa.Table.from_pandas(pd.concat(frames), schema=_SCORED, preserve_index=False)
    weighted = pa.array(joined[HEADLINE].to_numpy() * weights)
    return joined, joined.set_column(2, HEADLINE, weighted)


_SCORED = pa.schema([("query_id", pa.string()), ("cluster", pa.string()), (HEADLINE, pa.float64())])


def corrected(
    tested: Sequence[tuple[str, Contrast, Difference]], level: float
) -> list[dict[str, Any]]:
    """Correct the p-values of all contrasts together, and say what each has shown.

    Args:
        tested: dataset, contrast and outcome.
        level: a contrast is significant if its corrected p is below.

    Returns:
        Records with the fields of the contrast and of the Difference, corrected_p, significant and
        effect: "better", "worse", "unclear", or "too few" observations to show anything.
    """
    p_values = holm([change.p for _, _, change in tested])
    records = []
    for (dataset, contrast, change), p in zip(tested, p_values, strict=True):
        record = {"dataset": dataset, **contrast.model_dump(), **change._asdict()}
        effect = "too few" if change.clusters < fewest_to_tell(level) else "unclear"
        if p < level:
            effect = "better" if change.difference > 0 else "worse"
        records.append(record | {"corrected_p": p, "significant": p < level, "effect": effect})
    return records


def read_comparison(folder: Path) -> dict[str, Any]:
    """Read comparison.json of an artifact of the stage compare.

    Raises:
        DataError: if another version wrote it.
    """
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    if comparison.get("schema") != SCHEMA:
        raise DataError(
            f"{folder}/comparison.json has schema {comparison.get('schema')}, this version reads "
            f"{SCHEMA}; compare the systems again"
        )
    return comparison


def titles_of(comparison: dict[str, Any]) -> dict[str, str]:
    """Return the systems' titles by name, from comparison.json."""
    return {system["name"]: system["title"] for system in comparison["systems"]}


def examples(differences: pa.Table) -> list[dict[str, Any]]:
    """Return the queries that won and lost most in each contrast, over all datasets.

    Args:
        differences: dataset, before, after, query_id, query, both scores, and difference.

    Returns:
        Rows of it, SHOWN wins and SHOWN losses per contrast at most, each beginning with the largest.
    """
    rows = []
    pairs = zip(differences["before"].to_pylist(), differences["after"].to_pylist(), strict=True)
    grouped: dict[tuple[str, str], list[int]] = {}
    for row, pair in enumerate(pairs):
        grouped.setdefault(pair, []).append(row)
    order = [("difference", "descending"), ("dataset", "ascending"), ("query_id", "ascending")]
    for places in grouped.values():
        queries = differences.take(places).sort_by(order)
        wins = queries.slice(0, SHOWN).to_pylist()
        losses = queries.slice(max(0, len(queries) - SHOWN)).to_pylist()[::-1]
        rows += [row for row in wins if row["difference"] > 0]
        rows += [row for row in losses if row["difference"] < 0]
    return rows
