"""Measure systems on datasets, ask what differs, and compare them in one report."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from expandr_core.evaluation.comparison import (
    Contrast,
    MeasuredDataset,
    SubsetsAre,
    System,
    read_comparison,
)
from expandr_core.evaluation.run_queries import identical_ids_warning
from expandr_core.evaluation.verdict import Kept
from expandr_core.options.evaluation import RankingOptions
from expandr_core.options.retriever import EncodingOptions
from expandr_core.stages.audit import AuditOptions
from expandr_core.stages.compare import CompareOptions
from expandr_core.stages.evaluate import EvaluateOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from tasks.data import Evaluation
from tasks.expand import empty_warnings, write_expansions, write_greedy
from tasks.pipeline import Pipeline
from tasks.retriever import encode_corpus

Mode = Literal["query", "expansion", "fused"]
Expansions = dict[str, list[Artifact]]  # of the queries of each dataset, one artifact per seed


class Gain(NamedTuple):
    """The difference in nDCG@10 between two systems, its p-value, and the number of observations."""

    difference: float
    p: float
    clusters: int


PREDICTED = Gain(1.0, 0.0, 1000)  # by dry runs: every round brings a gain


@dataclass(frozen=True)
class Measured:
    """A dataset, and by subset what is searched in it; one without subsets has the subset ""."""

    dataset: MeasuredDataset
    subsets: dict[str, Evaluation]


@dataclass
class Comparison:
    """Systems measured on the same datasets, in the order of the report, and questions about them.

    Attributes:
        datasets: what they are measured on.
        systems: those that are measured, by name.
        contrasts: the family of tests.
        inputs: of the stage compare, by role.
        written: expansions, by title, whoever wrote them.
        expansions: that a system searches with, by its name.
        vectors: of each dataset, by each retriever and encoding.
        indices: for BM25, by corpus and language.
        purpose: begins the names of its steps, where a run measures a dataset for several purposes.
        subsets_are: what the subsets of its datasets are.
        notes: sentences at the end of the verdict.
    """

    datasets: list[Measured]
    systems: dict[str, System] = field(default_factory=dict)
    contrasts: list[Contrast] = field(default_factory=list)
    inputs: dict[str, Artifact] = field(default_factory=dict)
    written: list[tuple[str, Artifact]] = field(default_factory=list)
    expansions: dict[str, Expansions] = field(default_factory=dict)
    vectors: dict[tuple[str, str, EncodingOptions], Artifact] = field(default_factory=dict)
    indices: dict[tuple[str, str], Artifact] = field(default_factory=dict)
    purpose: str = ""
    subsets_are: SubsetsAre = "parts"
    notes: list[str] = field(default_factory=list)

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """What is searched, by the name of the dataset, or of its subset, among the inputs."""
        return {
            each.dataset.keys()[subset]: evaluation
            for each in self.datasets
            for subset, evaluation in each.subsets.items()
        }

    def expand(
        self, pipeline: Pipeline, llm: Artifact, name: str, which: str, seeds: int = 1
    ) -> Expansions:
        """Expand all queries as the options say, mostly sampled: once per seed.

        Args:
            pipeline: of the run; its seed is the first.
            llm: writes.
            name: of the expansions.
            which: the model's title.
            seeds: how many.
        """
        first = pipeline.options.seed
        return {
            key: [
                write_expansions(
                    pipeline.changed(seed=seed),
                    evaluation.queries,
                    llm,
                    f"expand the {key} queries, {which}" + _seed(seed, seeds),
                    f"{self.purpose}{key}/{name}/{seed - first}",
                )
                for seed in range(first, first + seeds)
            ]
            for key, evaluation in self.evaluations.items()
        }

    def expand_greedily(
        self, pipeline: Pipeline, llm: Artifact, name: str, which: str
    ) -> Expansions:
        """Expand all queries with the likeliest tokens."""
        return {
            key: [
                write_greedy(
                    pipeline,
                    evaluation.queries,
                    llm,
                    f"expand the {key} queries greedily, {which}",
                    f"{self.purpose}{key}/{name}",
                )
            ]
            for key, evaluation in self.evaluations.items()
        }

    def dense(
        self,
        pipeline: Pipeline,
        name: str,
        title: str,
        retriever: Artifact,
        expansions: Expansions | None = None,
        mode: Mode = "fused",
    ) -> None:
        """Measure a retriever with the mean of query and expansion, or with one of them alone."""
        options, measure = pipeline.options.measured_retriever, pipeline.options.evaluate
        weights = {"fused": options.fusion.expansion_weight, "expansion": 1.0, "query": 0.0}
        for step, role, key, written in self.cells(pipeline, name, title, expansions):
            evaluation = self.evaluations[key]
            encoding = key, retriever.key, options.encoding
            if encoding not in self.vectors:
                self.vectors[encoding] = encode_corpus(
                    pipeline.changed(retriever=options),
                    evaluation.corpus,
                    retriever,
                    f"{key}: {title}",
                    f"{self.purpose}{key}/{name}",
                )
            chosen = EvaluateOptions.of(
                options,
                RankingOptions.of(measure, evaluation.identical_ids),
                weights[mode if written else "query"],
            )
            inputs = {"retriever": retriever, "expansions": written}
            inputs |= {"embeddings": self.vectors[encoding], **evaluation.judged}
            cell = self.purpose + role.removeprefix("measured/")
            self.inputs[role] = pipeline.step("evaluate", inputs, step, options=chosen, name=cell)

    def cells(
        self, pipeline: Pipeline, name: str, title: str, expansions: Expansions | None
    ) -> Iterator[tuple[str, str, str, Artifact | None]]:
        """Yield for each dataset and seed: title, input of the comparison, dataset, expansions."""
        seeds = max(map(len, expansions.values())) if expansions else 1
        self.expansions[name] = expansions or {}
        self.systems[name] = System(name=name, title=title, seeds=seeds)
        for key in self.evaluations:
            for seed, written in enumerate(expansions[key] if expansions else [None]):
                step = f"evaluate on {key}: {title}" + _seed(pipeline.options.seed + seed, seeds)
                if written:
                    self.written.append((f"{title} on {key}", written))
                yield step, f"measured/{key}/{name}/{seed}", key, written

    def audit(
        self,
        pipeline: Pipeline,
        before: str,
        after: str,
        expansions: Expansions | None,
        training: tuple[Artifact, ...],
    ) -> None:
        """Audit what a system gains for leakage.

        Args:
            pipeline: of the run.
            before: name of the system that it is compared with.
            after: name of the system.
            expansions: what it was measured with, if with any.
            training: files of examples that its models were trained on, as far as they are known.
        """
        for key, evaluation in self.evaluations.items():
            inputs = {
                **evaluation.judged,
                "corpus": evaluation.corpus,
                "before": self.inputs[f"measured/{key}/{before}/0"],
            }
            for seed, written in enumerate(expansions[key] if expansions else [None]):
                if written:
                    inputs[f"expansions-{seed}"] = written
                inputs[f"after-{seed}"] = self.inputs[f"measured/{key}/{after}/{seed}"]
            inputs |= {f"training-{number}": file for number, file in enumerate(training)}
            title, name = f"audit on {key}: {self.systems[after].title}", f"{key}/{after}"
            self.inputs[f"audit/{name}"] = pipeline.step(
                "audit", inputs, title, options=AuditOptions(), name=name
            )

    def ask(self, before: str, after: str, question: str, baseline: bool = False) -> None:
        """Ask whether one system is better than another, as one of the report's tests.

        Args:
            before: name of a system.
            after: name of another.
            question: for people.
            baseline: whether tables compare `after` with `before`.
        """
        self.contrasts.append(Contrast(before=before, after=after, question=question))
        if baseline:
            self.systems[after] = self.systems[after].model_copy(update={"baseline": before})

    def report(
        self,
        pipeline: Pipeline,
        title: str = "compare the systems",
        name: str = "",
        kept: Kept | None = None,
    ) -> Artifact:
        """Compare all systems measured so far; `kept` tells which of them were chosen elsewhere."""
        queries = {f"queries/{key}": each.queries for key, each in self.evaluations.items()}
        options = CompareOptions(
            systems=tuple(self.systems.values()),
            datasets=tuple(each.dataset for each in self.datasets),
            contrasts=tuple(self.contrasts),
            significance=pipeline.options.evaluate.significance,
            kept=kept,
            notes=tuple(self.notes),
            warnings=self._warnings(pipeline),
            subsets_are=self.subsets_are,
        )
        return pipeline.step("compare", queries | self.inputs, title, options=options, name=name)

    def _warnings(self, pipeline: Pipeline) -> tuple[str, ...]:
        """Warn of empty texts, and of passages that were left out for their ids."""
        first = next(iter(self.systems))
        counts = {k: self.inputs[f"measured/{k}/{first}/0"].counts for k in self.evaluations}
        said = {key: identical_ids_warning(each) for key, each in counts.items()}
        return (
            *empty_warnings(self.written, pipeline.steps),
            *(f"{key}: {warning}" for key, warning in said.items() if warning),
        )

    def gain(self, pipeline: Pipeline, before: str, after: str) -> Gain:
        """Compare two systems on the one dataset; a dry run predicts a gain."""
        pair = {name: self.systems[name] for name in (before, after)}
        question = " -> ".join(system.title for system in pair.values())
        alone = replace(
            self,
            systems=pair,
            contrasts=[Contrast(before=before, after=after, question=question)],
            inputs={r: made for r, made in self.inputs.items() if r.split("/")[-2] in pair},
        )
        where = ", ".join(each.dataset.name for each in self.datasets)
        title = f"compare on {where}: {self.systems[after].title}"
        report = alone.report(pipeline, title, f"{self.purpose}{where}/{after}")

        def read(store: Store) -> Gain:
            [found] = read_comparison(store.local(report))["contrasts"]
            return Gain(found["difference"], found["p"], found["clusters"])

        return pipeline.ask(read, predicted=PREDICTED)


def _seed(seed: int, of: int) -> str:
    """Tell titles of several seeds apart."""
    return f", seed {seed}" if of > 1 else ""
