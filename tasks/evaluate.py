"""Measure systems, compare them, and publish the report."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prefect.artifacts import create_markdown_artifact

from expandr_core.artifacts import Artifact
from expandr_core.options import EvaluateOptions, Options, RetrieverOptions
from expandr_core.stages import compare as compare_stage
from expandr_core.stages import evaluate as evaluate_stage
from expandr_core.stages import evaluate_bm25
from tasks.data import Evaluation
from tasks.retriever import encode_corpus
from tasks.stage import Workspace

Mode = Literal["query", "expansion", "fused"]


@dataclass
class Scoreboard:
    """Systems measured on one split, in the order of the report, and the steps between them.

    Attributes:
        measured: each system's evaluation, by role.
        titles: its name in the report, by role.
        steps: (before, after, question), which are tested.
    """

    work: Workspace
    evaluation: Evaluation
    split: str
    retriever_options: RetrieverOptions
    options: EvaluateOptions
    measured: dict[str, Artifact] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, str, str]] = field(default_factory=list)

    def dense(
        self,
        role: str,
        title: str,
        retriever: Artifact,
        expansions: Artifact | None = None,
        mode: Mode = "fused",
    ) -> Artifact:
        """Measure a retriever with the mean of query and expansion, or with one of them alone."""
        weights = {"fused": self.retriever_options.expansion_weight, "expansion": 1.0, "query": 0.0}
        mode = mode if expansions else "query"
        vectors = encode_corpus(
            self.work, self.evaluation.corpus, retriever, self.retriever_options, title
        )
        options = evaluate_stage.OPTIONS(
            encoding=self.retriever_options.encoding,
            expansion_weight=weights[mode],
            depth=self.options.depth,
            block_size=self.options.block_size,
        )
        inputs = {"retriever": retriever, "embeddings": vectors, "expansions": expansions}
        return self._add(role, title, "evaluate", options, inputs)

    def bm25(self, role: str, title: str, expansions: Artifact | None = None) -> Artifact:
        """Measure BM25, the reference from outside."""
        options = evaluate_bm25.OPTIONS(depth=self.options.depth)
        inputs = {"corpus": self.evaluation.corpus, "expansions": expansions}
        return self._add(role, title, "evaluate_bm25", options, inputs)

    def _add(
        self,
        role: str,
        title: str,
        stage: str,
        options: Options,
        inputs: dict[str, Artifact | None],
    ) -> Artifact:
        inputs |= {"queries": self.evaluation.queries, "qrels": self.evaluation.qrels}
        name = f"evaluate on {self.split}: {title}"
        self.measured[role] = self.work.make(name, stage, options, inputs)
        self.titles[role] = title
        return self.measured[role]

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
            test=self.options.test,
            significance_level=self.options.significance_level,
        )
        return self.work.make(title, "compare", options, dict(self.measured))

    def gain(self, before: str, after: str) -> tuple[float, bool]:
        """Compare two systems: the difference in nDCG@10, and whether it is significant."""
        pair = replace(
            self,
            measured={role: self.measured[role] for role in (before, after)},
            steps=[(before, after, f"{self.titles[before]} -> {self.titles[after]}")],
        )
        step = read_report(self.work, pair.report(f"compare on {self.split}: {after}"))["steps"][0]
        return step["difference"], step["significant"]


def read_report(work: Workspace, report: Artifact) -> dict[str, Any]:
    """Read a report's numbers."""
    return json.loads((work.open().local(report) / "report.json").read_text())


def publish(work: Workspace, report: Artifact) -> None:
    """Show the report as an artifact in Prefect."""
    markdown = (work.open().local(report) / "report.md").read_text()
    create_markdown_artifact(
        markdown, key="joint-loop-report", description=f"{report.key} in {work.store}"
    )
