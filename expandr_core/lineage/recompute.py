"""A cell of a report, computed again from the rankings and the judgements.

Rankings are read in batches, so memory does not grow with the number of queries beyond their scores.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import MeasuredDataset, join_subsets
from expandr_core.evaluation.means import Mean, over_datasets, over_seeds, over_subsets
from expandr_core.evaluation.metrics import HEADLINE, MEASURES, mean_metrics, score_queries
from expandr_core.evaluation.significance import compare_queries, holm
from expandr_core.lineage.cells import DEVIATION, Cell
from expandr_core.records import RUN, rows_with_ids
from expandr_core.seeding import derive_seed
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

_ROWS_AT_ONCE = 65536


class Recomputation:
    """Measures evaluations of a comparison again.

    Attributes:
        comparison: the content of comparison.json.
        inputs: of the comparison, by role.
        seed: of the comparison.
    """

    def __init__(self, store: Store, comparison: Mapping[str, Any], manifest: Mapping[str, Any]):
        """Look at a comparison and its manifest."""
        self.store, self.comparison = store, comparison
        self.inputs, self.seed = manifest["inputs"], manifest["seed"]
        self.datasets = {each["name"]: each for each in comparison["datasets"]}
        self.seeds = {each["name"]: each["seeds"] for each in comparison["systems"]}
        self._measured: dict[tuple[str, int | None], pa.Table] = {}

    def evaluations(self, dataset: str, system: str) -> Iterator[tuple[str, int, str]]:
        """Yield the evaluations of a system on a dataset: subset, seed and key."""
        known = MeasuredDataset(**self.datasets[dataset])
        for subset, place in known.keys().items():
            for seed in range(self.seeds[system]):
                yield subset, seed, self.inputs[f"measured/{place}/{system}/{seed}"]["key"]

    def value(self, cell: Cell) -> float:
        """Compute a cell again."""
        if cell.kind == "test":
            return self._test(cell)
        metric = cell.field.removesuffix(f"_{DEVIATION}")
        if metric == "queries":
            keys = self.evaluations(cell.place, cell.system)
            return sum(len(self._scores(key, HEADLINE)) for _, seed, key in keys if seed == 0)
        names = cell.row["datasets"] if cell.kind == "mean" else [cell.place]
        frame = pd.concat([self._frame(name, cell.system, metric) for name in names])
        if cell.kind == "mean":
            mean = Mean(**{name: cell.row[name] for name in Mean._fields})
            [row] = over_datasets(over_subsets(frame), [mean])
            return row[cell.field]
        rows = over_seeds(over_subsets(frame), ["dataset", "system"])
        return float(rows[cell.field].iloc[0])

    def _frame(self, dataset: str, system: str, metric: str) -> pd.DataFrame:
        """Return the mean of each evaluation, as the stage compare lays it out."""
        rows, subsets = [], list(MeasuredDataset(**self.datasets[dataset]).keys())
        for subset, seed, key in self.evaluations(dataset, system):
            scores = self._scores(key, metric)
            row: dict[str, Any] = mean_metrics(scores) | {
                "system": system,
                "dataset": dataset,
                "subset": subset,
                "seed": seed,
            }
            if "subsets_are" in self.comparison:  # each seed has a subset of its own
                row |= {"subset": "", "seed": subsets.index(subset)}
            rows.append(row | {"queries": len(scores)})
        return pd.DataFrame(rows)

    def _test(self, cell: Cell) -> float:
        """Repeat a test; the other p-values of its family are those of the report."""
        before, after = (self._per_query(cell.place, name) for name in (cell.before, cell.system))
        seed = derive_seed("compare", self.seed)
        change = compare_queries(before, after, HEADLINE, self.comparison["test"], seed)
        if cell.field == "corrected_p":
            family = self.comparison["contrasts"]
            p_values = [change.p if each == cell.row else each["p"] for each in family]
            return holm(p_values)[family.index(cell.row)]
        if cell.field in ("wins", "losses"):
            rows = [self._per_query(cell.place, name, weighted=False)[HEADLINE].to_numpy()
                    for name in (cell.before, cell.system)]  # fmt: skip
            won = rows[1] > rows[0] if cell.field == "wins" else rows[1] < rows[0]
            return int(won.sum())
        return getattr(change, cell.field)

    def _per_query(self, dataset: str, system: str, weighted: bool = True) -> pa.Table:
        """Return a system's nDCG@10 of each query; see `join_subsets`."""
        tables: dict[str, list[pa.Table]] = {}
        for subset, _, key in self.evaluations(dataset, system):
            tables.setdefault(subset, []).append(self._scores(key, HEADLINE))
        several = any(seeds > 1 for seeds in self.seeds.values())
        subsets_are = self.comparison.get("subsets_are", "parts")
        return join_subsets(tables, several, subsets_are)[int(weighted)].sort_by("query_id")

    def _scores(self, key: str, metric: str) -> pa.Table:
        """Return query_id, cluster and METRICS; only the metric asked for is of use."""
        ranks = _RANKS[metric]
        if (key, ranks) not in self._measured:
            self._measured[key, ranks] = measured_again(self.store, key, ranks)
        return self._measured[key, ranks]


_RANKS = {  # how deep a ranking has to be read for each metric
    name: measure.ranks or next(map(int, measure.measure.partition(".")[2].split()), None)
    for name, measure in MEASURES.items()
}


def measured_again(store: Store, key: str, ranks: int | None = None) -> pa.Table:
    """Measure each query of an evaluation again, by its run.parquet and its judgements.

    Args:
        store: that keeps them.
        key: of the evaluation.
        ranks: how many of the first hits to read; None for all, as MAP needs.

    Returns:
        query_id, cluster and METRICS, sorted by query_id; metrics that need more ranks are wrong.

    Raises:
        DataError: if a query's hits are not together.
    """
    manifest = store.manifest(key)
    paths = {
        role: store.local(Artifact(**manifest["inputs"][role])) for role in ("queries", "qrels")
    }
    queries = pq.read_table(paths["queries"], columns=["query_id", "cluster"])
    qrels = rows_with_ids(paths["qrels"], "query_id", queries["query_id"].unique())
    run = store.local(_file(manifest, "run.parquet"))
    tables, seen = [], set[str]()
    for hits in _whole_queries(run, ranks):
        ids = hits["query_id"].unique()
        if again := seen & set(ids.to_pylist()):
            raise DataError(f"{run}: the hits of query {min(again)!r} are not together")
        seen |= set(ids.to_pylist())
        tables.append(score_queries(qrels.filter(pc.field("query_id").isin(ids)), hits))
    without_hits = qrels.filter(~pc.field("query_id").isin(pa.array(seen, pa.string())))
    tables.append(score_queries(without_hits, RUN.empty_table()))
    scores = pa.concat_tables(tables).sort_by("query_id")
    columns = (queries[name].to_pylist() for name in ("query_id", "cluster"))
    cluster_of = dict(zip(*columns, strict=True))
    clusters = [cluster_of[query_id] for query_id in scores["query_id"].to_pylist()]
    return scores.add_column(1, "cluster", pa.array(clusters, pa.string()))


def _file(manifest: Mapping[str, Any], path: str) -> Artifact:
    """Refer to one file of an artifact."""
    [digest] = [file["sha256"] for file in manifest["files"] if file["path"] == path]
    return Artifact(key=manifest["key"], digest=digest, path=path)


def _whole_queries(run: Any, ranks: int | None) -> Iterator[pa.Table]:
    """Yield the hits of a ranking in pieces that end with a query."""
    waiting: list[pa.Table] = []
    for batch in pq.ParquetFile(run).iter_batches(_ROWS_AT_ONCE, use_threads=False):
        table = pa.Table.from_batches([batch])
        last = table["query_id"][-1]
        kept = table if ranks is None else table.filter(pc.field("rank") <= ranks)
        whole = kept.filter(pc.field("query_id") != last)
        rest = kept.filter(pc.field("query_id") == last)
        if len(whole) or (waiting and table["query_id"][0].as_py() != last.as_py()):
            yield pa.concat_tables([*waiting, whole])
            waiting = []
        waiting.append(rest)
    if waiting:
        yield pa.concat_tables(waiting)
