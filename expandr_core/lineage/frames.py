"""Runs and their numbers as pandas frames, for notebooks; see docs/notebooks.md.

runs = Results("store")
run = runs.run("latest")
run.systems()
"""

import logging
from collections.abc import Iterable
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import titles_of
from expandr_core.evaluation.metrics import METRICS
from expandr_core.lineage.cells import find_cell
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.explain import explain
from expandr_core.lineage.finding import find_run
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import RecordedRun, recorded_run
from expandr_core.store.store import Store

log = logging.getLogger(__name__)


class Results:
    """The runs of a store.

    Attributes:
        store: that keeps them.
    """

    def __init__(self, store: str, scratch: str | None = None):
        """Open a store.

        Args:
            store: a folder, or s3://bucket/prefix.
            scratch: local folder for downloads from S3.
        """
        self.store = Store(store, scratch)

    def runs(self) -> pd.DataFrame:
        """List the finished runs, oldest first: name, kind, times, preset, best_round and tags.

        Records that this version cannot read are left out with a warning.
        """
        columns = ["name", "kind", "started", "finished", "preset", "best_round", "tags"]
        rows = []
        for record in self.store.records():
            try:
                each = recorded_run(record)
            except DataError as error:
                log.warning("%s", error)
            else:
                rows.append({name: getattr(each, name) for name in columns})
        return pd.DataFrame(rows, columns=columns)

    def run(self, name: str = "latest") -> "RunResults":
        """Find a run by the beginning of its name.

        Raises:
            DataError: if there is none.
        """
        return RunResults(*find_run([self.store], name))


class RunResults:
    """What a run measured, wrote and chose.

    Attributes:
        store: that keeps it.
        record: which artifacts it used, in order.
        comparison: all numbers of its report, as in comparison.json.
    """

    def __init__(self, store: Store, record: RecordedRun):
        """Look at a run."""
        self.store, self.record = store, record
        self._compared = ComparedRun(store, record)
        self.comparison: dict[str, Any] = self._compared.comparison
        self._measured = self._compared.measured

    def systems(self) -> pd.DataFrame:
        """Return a row per dataset and system: titles, metrics, and the test against the baseline."""
        frame = pd.DataFrame(self.comparison["results"])
        frame.insert(2, "title", frame["system"].map(titles_of(self.comparison)))
        return frame

    def tests(self) -> pd.DataFrame:
        """Return a row per test: before, after, difference, p, corrected_p, effect."""
        return pd.DataFrame(self.comparison["contrasts"])

    def per_query(self, *systems: str) -> pd.DataFrame:
        """Return a row per dataset, subset, system, seed and query, with all metrics.

        Args:
            systems: names or titles; all systems by default.

        Raises:
            DataError: if there is no such system.
        """
        frames = []
        for dataset in self._measured.datasets:
            for system in self._names(systems):
                for subset, seed, key in self._measured.evaluations(dataset, system):
                    path = self.store.local(Artifact(key=key, digest="", path="per_query.parquet"))
                    frame = pq.read_table(path).to_pandas()
                    place = {"dataset": dataset, "subset": subset, "system": system, "seed": seed}
                    frames.append(frame.assign(**place)[[*place, *frame.columns]])
        return pd.concat(frames, ignore_index=True)

    def texts(self, system: str, dataset: str = "", seed: int = 0) -> pd.DataFrame:
        """Return what was written for the queries that a system was measured with, a row a text.

        Args:
            system: its name or title.
            dataset: its name; "" for the first.
            seed: number of the evaluation, from 0.

        Raises:
            DataError: if there is no such system, dataset or seed, or it searches without texts.
        """
        [name] = self._names([system])
        datasets, seeds = list(self._measured.datasets), self._measured.seeds[name]
        place = dataset or datasets[0]
        if place not in datasets:
            raise DataError(f"{self.record.name} has no dataset {place!r}; there are {datasets}")
        if seed not in range(seeds):
            raise DataError(f"{name} has no seed {seed}; there are {seeds}, from 0")
        tables = []
        for _, number, key in self._measured.evaluations(place, name):
            inputs = self.store.manifest(key)["inputs"]
            if "expansions" not in inputs:
                raise DataError(f"{name} searches with the queries alone; it has no texts")
            if number == seed:
                queries = pq.read_table(self.store.local(Artifact(**inputs["queries"])))
                texts = self._shards(inputs["expansions"], "expansions.parquet")
                named = dict(
                    zip(*(queries[c].to_pylist() for c in ("query_id", "query")), strict=True)
                )
                frame = texts.to_pandas()
                frame.insert(1, "query", frame["query_id"].map(named))
                tables.append(frame)
        return pd.concat(tables, ignore_index=True)

    def pairs(self, round: int = 1) -> pd.DataFrame:
        """Return the preference pairs of a round, a row a query.

        Raises:
            DataError: if the round has none.
        """
        artifact = self._step(("pairs", "import_pairs"), round)
        return pq.read_table(self.store.local(artifact) / "pairs.parquet").to_pandas()

    def candidates(self, round: int = 1) -> pd.DataFrame:
        """Return the rewarded candidates of a round, a row a text.

        Raises:
            DataError: if the round has none.
        """
        artifact = self._step(("reward",), round)
        return self._shards(artifact.model_dump(), "rewards.parquet").to_pandas()

    def explain(self, what: str = "", check: bool = False) -> dict[str, Any]:
        """Explain a number as `expandr explain` does."""
        return explain(self.store, self.record, what, check)

    def value(self, what: str = "") -> float | None:
        """Return a number of the report, such as "joint-1/ndcg@10"; by default the headline."""
        return find_cell(self.comparison, what, self._compared.limits).value

    def _names(self, systems: Iterable[str]) -> list[str]:
        """Return the names of systems; of all, if none is given."""
        metric = METRICS[0]
        dataset = self.comparison["datasets"][0]["name"]
        named = [
            find_cell(self.comparison, f"{dataset}/{each}/{metric}", self._compared.limits).system
            for each in systems
        ]
        return named or list(titles_of(self.comparison))

    def _step(self, stages: tuple[str, ...], round: int) -> Artifact:
        found = [
            s.artifact for s in self.record.steps if s.id.stage in stages and s.id.round == round
        ]
        found = found or [s.artifact for s in self.record.steps if s.id.stage in stages[1:]]
        if not found:
            rounds = sorted({s.id.round for s in self.record.steps if s.id.stage in stages})
            raise DataError(
                f"round {round} of {self.record.name} has no {stages[0]}; there are {rounds}"
            )
        return found[-1]

    def _shards(self, reference: dict[str, Any], name: str) -> pa.Table:
        parts = self.store.manifest(reference["key"])["parts"]
        return pa.concat_tables(
            pq.read_table(self.store.local(Artifact(**part)) / name) for part in parts
        )
