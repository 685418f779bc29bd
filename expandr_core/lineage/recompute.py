"""A cell of a report, computed again from the rankings and the judgements."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.evaluation.comparison import MeasuredDataset, join_subsets
from expandr_core.evaluation.leakage import summary
from expandr_core.evaluation.means import Mean, over_datasets, over_seeds, over_subsets
from expandr_core.evaluation.metrics import HEADLINE, mean_metrics
from expandr_core.evaluation.significance import compare_queries, holm
from expandr_core.lineage.cells import DEVIATION, Cell
from expandr_core.lineage.intervals import Limits, intervals
from expandr_core.lineage.remeasure import measured_again
from expandr_core.seeding import derive_seed
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store


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
        self._measured: dict[str, pa.Table] = {}
        self._limits: dict[str, Limits] = {}

    def evaluations(self, dataset: str, system: str) -> Iterator[tuple[str, int, str]]:
        """Yield the evaluations of a system on a dataset: subset, seed and key."""
        known = MeasuredDataset(**self.datasets[dataset])
        for subset, place in known.keys().items():
            for seed in range(self.seeds[system]):
                yield subset, seed, self.inputs[f"measured/{place}/{system}/{seed}"]["key"]

    def value(self, cell: Cell) -> float:
        """Compute a cell again."""
        if cell.limit is not None:
            return self._limit(cell, cell.limit)
        if cell.kind == "audit":
            return self._audit(cell)
        if cell.kind == "test":
            return self._test(cell)
        metric = cell.field.removesuffix(f"_{DEVIATION}")
        if metric == "queries":
            keys = [key for _, seed, key in self.evaluations(cell.place, cell.system) if seed == 0]
            counted = keys[:1] if "subsets_are" in self.comparison else keys
            return sum(len(self._scores(key)) for key in counted)
        names = cell.row["datasets"] if cell.kind == "mean" else [cell.place]
        frame = pd.concat([self._frame(name, cell.system) for name in names])
        if cell.kind == "mean":
            mean = Mean(**{name: cell.row[name] for name in Mean._fields})
            [row] = over_datasets(over_subsets(frame), [mean])
            return row[cell.field]
        rows = over_seeds(over_subsets(frame), ["dataset", "system"])
        return float(rows[cell.field].iloc[0])

    def _frame(self, dataset: str, system: str) -> pd.DataFrame:
        """Return the mean of each evaluation, as the stage compare lays it out."""
        rows, subsets = [], list(MeasuredDataset(**self.datasets[dataset]).keys())
        for subset, seed, key in self.evaluations(dataset, system):
            scores = self._scores(key)
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
            counted = [each.get("counted", True) for each in family]
            return holm(p_values, counted)[family.index(cell.row)]
        if cell.field in ("wins", "losses"):
            rows = [self._per_query(cell.place, name, weighted=False)[HEADLINE].to_numpy()
                    for name in (cell.before, cell.system)]  # fmt: skip
            won = rows[1] > rows[0] if cell.field == "wins" else rows[1] < rows[0]
            return int(won.sum())
        return getattr(change, cell.field)

    def _limit(self, cell: Cell, side: int) -> float:
        """Draw the intervals of a dataset again, and return one limit of one of them."""
        if cell.place not in self._limits:
            drawn = intervals(
                self.comparison, cell.place, lambda name: self._per_query(cell.place, name)
            )
            self._limits[cell.place] = drawn.limits
        limit = self._limits[cell.place][cell.before, cell.system][side]
        assert limit is not None
        return limit

    def _audit(self, cell: Cell) -> float:
        """Count the marks of an audit again; a gain is that of the rankings and the judgements."""
        artifact = self.audit(cell)
        manifest = self.store.manifest(artifact.key)
        inputs = manifest["inputs"]
        rows = pq.read_table(self.store.local(artifact) / "audit.parquet").sort_by("query_id")
        marked = {name: rows[name].to_numpy() for name in rows.column_names}
        scores = {role: self._scores(each["key"])[HEADLINE].to_numpy()
                  for role, each in inputs.items() if role.startswith(("before", "after-"))}  # fmt: skip
        marked["before"] = scores.pop("before")
        marked["after"] = np.mean(list(scores.values()), axis=0)
        audited = any(role.startswith("training-") for role in inputs)
        found = summary(marked, marked["copied"], audited)
        mark, _, number = cell.field.removeprefix("leakage.").rpartition(".")
        return (found[mark] if mark else found)[number]

    def audit(self, cell: Cell) -> Artifact:
        """Refer to the audit that a cell comes from."""
        return Artifact(**self.inputs[f"audit/{cell.place}/{cell.system}"])

    def _per_query(self, dataset: str, system: str, weighted: bool = True) -> pa.Table:
        """Return a system's nDCG@10 of each query; see `join_subsets`."""
        tables: dict[str, list[pa.Table]] = {}
        for subset, _, key in self.evaluations(dataset, system):
            tables.setdefault(subset, []).append(self._scores(key))
        several = any(seeds > 1 for seeds in self.seeds.values())
        subsets_are = self.comparison.get("subsets_are", "parts")
        return join_subsets(tables, several, subsets_are)[int(weighted)].sort_by("query_id")

    def _scores(self, key: str) -> pa.Table:
        if key not in self._measured:
            self._measured[key] = measured_again(self.store, key)
        return self._measured[key]
