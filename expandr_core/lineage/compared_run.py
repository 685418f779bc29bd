"""A run that is compared with another: its report, its evaluations, and what these were measured on."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.evaluation.comparison import join_subsets, read_comparison
from expandr_core.lineage.intervals import Intervals, Limits, intervals
from expandr_core.lineage.nodes import Lineage
from expandr_core.lineage.recompute import Recomputation
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import RecordedRun
from expandr_core.store.store import Store

DEV = "dev"  # the dataset that chooses the round


@dataclass(frozen=True)
class ComparedRun:
    """A run that is compared.

    Attributes:
        store: that keeps it.
        run: its record.
    """

    store: Store
    run: RecordedRun

    @cached_property
    def lineage(self) -> Lineage:
        """The manifests upstream of its report."""
        return Lineage(self.store, self.run)

    @cached_property
    def comparison(self) -> dict[str, Any]:
        """Its report."""
        return read_comparison(self.store.local(self.run.report))

    @cached_property
    def measured(self) -> Recomputation:
        """The evaluations of its report."""
        manifest = self.lineage.node(self.run.report.key).manifest
        return Recomputation(self.store, self.comparison, manifest)

    @cached_property
    def choices(self) -> list["ComparedRun"]:
        """The comparisons on the dev queries that chose the round, in order."""
        chosen = [
            ComparedRun(self.store, self.run.model_copy(update={"report": step.artifact}))
            for step in self.run.steps
            if step.id.stage == "compare" and step.id.round
        ]
        return [each for each in chosen if DEV in each.measured.datasets]

    def row(self, dataset: str, system: str) -> dict[str, Any] | None:
        """Return the report's row of a system on a dataset."""
        rows = self.comparison["results"]
        found = [row for row in rows if (row["dataset"], row["system"]) == (dataset, system)]
        return found[0] if found else None

    def evaluations(self, dataset: str, system: str) -> dict[tuple[str, int], str]:
        """Return the keys of a system's evaluations on a dataset, by subset and seed."""
        found = self.measured.evaluations(dataset, system)
        return {(subset, seed): key for subset, seed, key in found}

    @property
    def has_seeds(self) -> bool:
        """Whether a system was measured with several seeds, so that scores are means."""
        return any(seeds > 1 for seeds in self.measured.seeds.values())

    def scores(self, dataset: str, system: str, rounded: bool | None = None) -> pa.Table:
        """Return query_id, cluster and nDCG@10 of a system, as its report tested them.

        Args:
            dataset: that it was measured on.
            system: its name.
            rounded: see `join_subsets`; as the report has done it by default.
        """
        rounded = self.has_seeds if rounded is None else rounded
        tables: dict[str, list[pa.Table]] = {}
        for (subset, _), key in self.evaluations(dataset, system).items():
            path = self.store.local(Artifact(key=key, digest="", path="per_query.parquet"))
            tables.setdefault(subset, []).append(pq.read_table(path))
        return join_subsets(tables, rounded, self.comparison.get("subsets_are", "parts"))[1]

    def intervals(self, dataset: str) -> Intervals:
        """Return the intervals that its report shows for a dataset."""
        return intervals(self.comparison, dataset, lambda name: self.scores(dataset, name))

    def limits(self, dataset: str) -> Limits:
        """Return their limits alone."""
        return self.intervals(dataset).limits

    def data(self, dataset: str, system: str, role: str) -> dict[str, Artifact]:
        """Return the corpora, queries or judgements that a system was measured on, by subset."""
        found = {}
        for (subset, seed), key in self.evaluations(dataset, system).items():
            if seed == 0:
                inputs = self.lineage.node(key).inputs
                found[subset] = Artifact(
                    **(self.lineage.corpus_of(key) if role == "corpus" else inputs[role])
                )
        return found
