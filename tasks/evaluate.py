"""Measure systems, compare them, and publish the report."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from expandr_core.evaluation.run_queries import identical_ids_warning
from expandr_core.options.evaluation import EvaluationOptions, RankingOptions
from expandr_core.options.retriever import RetrieverOptions
from expandr_core.stages import compare as compare_stage
from expandr_core.stages import evaluate as evaluate_stage
from expandr_core.stages import evaluate_bm25
from expandr_core.store.artifacts import Artifact
from tasks.data import Evaluation
from tasks.expand import empty_warnings
from tasks.retriever import encode_corpus
from tasks.stage import Workspace

Mode = Literal["query", "expansion", "fused"]


def measure_retriever(
    work: Workspace,
    title: str,
    evaluation: Evaluation,
    search_with: tuple[Artifact, Artifact, Artifact | None],
    expansion_weight: float,
    retriever_options: RetrieverOptions,
    options: EvaluationOptions,
) -> Artifact:
    """Measure a retriever on queries and judgements.

    Args:
        work: where artifacts are kept.
        title: names the step.
        evaluation: queries, judgements and corpus.
        search_with: the retriever, the corpus encoded by it, and the queries' expansions or None.
        expansion_weight: share of the expansions in the search vector; 0 without any.
        retriever_options: how texts become vectors, and the memory of the search.
        options: how deep the search goes.
    """
    retriever, vectors, expansions = search_with
    resolved = evaluate_stage.OPTIONS.of(
        retriever_options, RankingOptions.of(options, evaluation.identical_ids), expansion_weight
    )
    inputs = {"retriever": retriever, "embeddings": vectors, "expansions": expansions}
    return work.make(title, "evaluate", resolved, inputs | _judged(evaluation))


def measure_bm25(
    work: Workspace,
    title: str,
    evaluation: Evaluation,
    options: EvaluationOptions,
    expansions: Artifact | None = None,
) -> Artifact:
    """Measure BM25, with the words of the expansions if there are any."""
    inputs = {"corpus": evaluation.corpus, "expansions": expansions}
    resolved = evaluate_bm25.OPTIONS.of(options, evaluation.identical_ids)
    return work.make(title, "evaluate_bm25", resolved, inputs | _judged(evaluation))


def _judged(evaluation: Evaluation) -> dict[str, Artifact | None]:
    return {"queries": evaluation.queries, "qrels": evaluation.qrels}


def identical_ids_warnings(measured: Mapping[str, Artifact]) -> tuple[str, ...]:
    """Warn of passages that were left out for their ids, given an evaluation of each place."""
    said = {place: identical_ids_warning(each.counts) for place, each in measured.items()}
    return tuple(f"{place}: {warning}" for place, warning in said.items() if warning)


@dataclass
class Scoreboard:
    """Systems measured on one split, in the order of the report, and the steps between them.

    Attributes:
        measured: each system's evaluation, by role.
        titles: its name in the report, by role.
        steps: (before, after, question), which are tested.
        expansions: what systems were measured with, by title, however it came to be.
    """

    work: Workspace
    evaluation: Evaluation
    split: str
    retriever_options: RetrieverOptions
    options: EvaluationOptions
    measured: dict[str, Artifact] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, str, str]] = field(default_factory=list)
    expansions: list[tuple[str, Artifact]] = field(default_factory=list)

    def dense(
        self,
        role: str,
        title: str,
        retriever: Artifact,
        expansions: Artifact | None = None,
        mode: Mode = "fused",
    ) -> Artifact:
        """Measure a retriever with the mean of query and expansion, or with one of them alone."""
        weights = {
            "fused": self.retriever_options.fusion.expansion_weight,
            "expansion": 1.0,
            "query": 0.0,
        }
        vectors = encode_corpus(
            self.work, self.evaluation.corpus, retriever, self.retriever_options, title
        )
        self._note(role, title, expansions)
        self.measured[role] = measure_retriever(
            self.work,
            self._step(title),
            self.evaluation,
            (retriever, vectors, expansions),
            weights[mode if expansions else "query"],
            self.retriever_options,
            self.options,
        )
        return self.measured[role]

    def bm25(self, role: str, title: str, expansions: Artifact | None = None) -> Artifact:
        """Measure BM25, the reference from outside."""
        self._note(role, title, expansions)
        self.measured[role] = measure_bm25(
            self.work, self._step(title), self.evaluation, self.options, expansions
        )
        return self.measured[role]

    def _note(self, role: str, title: str, expansions: Artifact | None) -> None:
        self.titles[role] = title
        if expansions:
            self.expansions.append((title, expansions))

    def _step(self, title: str) -> str:
        return f"evaluate on {self.split}: {title}"

    def step(self, before: str, after: str, question: str) -> None:
        """Ask whether one system is better than another, as one of the report's tests."""
        self.steps.append((before, after, question))

    def report(self, title: str = "compare the systems") -> Artifact:
        """Compare all systems measured so far, with Holm's correction over all steps."""
        options = compare_stage.OPTIONS(
            systems=tuple(
                compare_stage.System(role=role, title=self.titles[role], split=self.split)
                for role in self.measured
            ),
            steps=tuple(
                compare_stage.StepOptions(before=before, after=after, question=question)
                for before, after, question in self.steps
            ),
            test=self.options.significance.test,
            significance_level=self.options.significance.significance_level,
            warnings=(
                *empty_warnings([*self.expansions, *self.work.made]),
                *identical_ids_warnings({self.split: next(iter(self.measured.values()))}),
            ),
        )
        return self.work.make(title, "compare", options, dict(self.measured))

    def gain(self, before: str, after: str) -> tuple[float, bool]:
        """Compare two systems: the difference in nDCG@10, and whether it is significant."""
        pair = replace(
            self,
            measured={role: self.measured[role] for role in (before, after)},
            steps=[(before, after, f"{self.titles[before]} -> {self.titles[after]}")],
        )
        report = pair.report(f"compare on {self.split}: {after}")
        step = self.work.read_json(report, "report.json")["steps"][0]
        return step["difference"], step["significant"]


def publish(work: Workspace, report: Artifact) -> None:
    """Show the report as an artifact in Prefect."""
    work.publish(report, "report.md", "joint-loop-report")
