"""The numbers of a leaderboard: what systems reach on datasets, and the means that may be taken of it.

A dataset's result is the unweighted mean over its forums, if it has any. Of several samples (seeds of
sampled expansions) there is the mean and the standard deviation (n - 1), of each dataset and of each
mean over datasets. Means are taken within a benchmark, never across, and called after all of its
datasets only if all are there.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from expandr_core.data.catalog import BENCHMARKS, Benchmark, Domain
from expandr_core.errors import DataError
from expandr_core.evaluation.metrics import METRICS
from expandr_core.options.base import Options

_DIGITS = 12  # so that a mean of equal scores equals them, and is no win
SCOPES: tuple[Domain | str, ...] = ("in-domain", "out-of-domain", "all")


class MeasuredDataset(Options):
    """A dataset of the leaderboard; one without forums has the part ""."""

    name: str
    benchmark: Benchmark
    domain: Domain
    parts: tuple[str, ...] = ("",)


class Mean(NamedTuple):
    """A mean over datasets.

    Attributes:
        benchmark: whose datasets.
        scope: one of SCOPES.
        datasets: those that are there.
        missing: those that the benchmark has besides.
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
    found = []
    benchmarks: dict[Benchmark, None] = dict.fromkeys(each.benchmark for each in datasets)
    for benchmark in benchmarks:
        for scope in SCOPES:
            present = tuple(
                dataset.name
                for dataset in datasets
                if dataset.benchmark == benchmark and scope in (dataset.domain, "all")
            )
            wanted = [
                name
                for name, each in BENCHMARKS.get(benchmark, {}).items()
                if scope in (each.domain, "all")
            ]
            if present:
                missing = tuple(name for name in wanted if name not in present)
                title = _title(benchmark, scope, len(present), len(wanted))
                found.append(Mean(benchmark, scope, present, missing, title))
    return found


def _title(benchmark: Benchmark, scope: str, present: int, total: int) -> str:
    if benchmark == "other":
        return f"other datasets, mean of {present}"
    if scope != "all":
        return f"{benchmark}, {scope} ({present} of {total})"
    if present < total:
        return f"{benchmark}, mean of {present} of {total}"
    return f"{benchmark}, mean of all {total}"


def summarise(samples: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return mean and deviation over the samples of each group.

    Args:
        samples: the columns `by`, and METRICS; one row a sample.
        by: what a group has in common.

    Returns:
        Indexed by `by`: METRICS, `<metric>_deviation` (NaN for a single sample), and `samples`.
    """
    groups = samples.groupby(by, sort=False)[list(METRICS)]
    deviations = groups.std(ddof=1).add_suffix("_deviation")
    return groups.mean().join(deviations).join(groups.size().rename("samples"))


def by_dataset(results: pd.DataFrame) -> pd.DataFrame:
    """Average the parts of each dataset without weights.

    Args:
        results: system, dataset, part, sample, queries, and METRICS.

    Returns:
        system, dataset, sample, queries (of all parts), and METRICS.
    """
    groups = results.groupby(["system", "dataset", "sample"], sort=False)
    return groups[list(METRICS)].mean().join(groups["queries"].sum()).reset_index()


def over_datasets(samples: pd.DataFrame, means: Iterable[Mean]) -> list[dict[str, Any]]:
    """Average each sample over the datasets of a mean, then the samples.

    Args:
        samples: what `by_dataset` returns.
        means: what `means_over` returns.

    Returns:
        Rows with system, the fields of the mean, METRICS and their deviations.
    """
    rows = []
    for mean in means:
        own = samples[samples["dataset"].isin(mean.datasets)]
        groups = own.groupby(["system", "sample"], sort=False)
        summary = summarise(groups[list(METRICS)].mean().reset_index(), ["system"])
        for record in summary.reset_index().to_dict("records"):
            rows.append(without_nan({"system": record.pop("system"), **mean._asdict(), **record}))
    return rows


def without_nan(record: dict[Any, Any]) -> dict[str, Any]:
    """Turn numpy's numbers into Python's, and NaN into None, as JSON needs them.

    >>> without_nan({"a": np.float64("nan"), "b": np.int64(2), "c": "d"})
    {'a': None, 'b': 2, 'c': 'd'}
    """
    plain = {name: v.item() if isinstance(v, np.generic) else v for name, v in record.items()}
    return {n: None if isinstance(v, float) and np.isnan(v) else v for n, v in plain.items()}


def join_parts(parts: dict[str, list[pa.Table]], metric: str) -> tuple[pa.Table, pa.Table]:
    """Join what a system reaches on each query: mean over samples, all parts together.

    Args:
        parts: the per-query tables (query_id, cluster, metrics) of each sample, by part.
        metric: the column that is wanted.

    Returns:
        Two tables with query_id (after "PART/", if there are parts), cluster and the metric: once as
        it is, and once weighted so that the mean over all queries is the unweighted mean of the
        parts' means. A test of the weighted one is a test of the dataset's result.

    Raises:
        DataError: if the samples are not about the same queries.

    With one query in part a and two in b, the three weigh 3 / (2 * 1) and twice 3 / (2 * 2):

    >>> tables = {part: [pa.table({"query_id": ids, "cluster": ids, "map": [1.0] * len(ids)})]
    ...           for part, ids in {"a": ["1"], "b": ["1", "2"]}.items()}
    >>> [table.to_pydict()["map"] for table in join_parts(tables, "map")]
    [[1.0, 1.0, 1.0], [1.5, 0.75, 0.75]]
    """
    frames = []
    for part, samples in parts.items():
        prefix = f"{part}/" if part else ""
        columns = ["query_id", "cluster", metric]
        rows = pd.concat([sample.select(columns).to_pandas() for sample in samples])
        frame = rows.groupby(["query_id", "cluster"], sort=True)[metric].mean().reset_index()
        if len(rows) != len(samples) * len(frame):
            raise DataError(
                f"the {len(samples)} samples of a system were measured on different queries; measure "
                "all of them on the same data"
            )
        frame[metric] = frame[metric].round(_DIGITS)
        frame[["query_id", "cluster"]] = prefix + frame[["query_id", "cluster"]]
        frames.append(frame.assign(weight=1 / (len(parts) * len(frame))))
    joined = pd.concat(frames)
    weighted = joined.assign(**{metric: joined[metric] * joined["weight"] * len(joined)})
    schema = pa.schema([("query_id", pa.string()), ("cluster", pa.string()), (metric, "float64")])
    plain, scaled = (
        pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
        for frame in (joined, weighted)
    )
    return plain, scaled
