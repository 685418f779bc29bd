"""Measure models on datasets: without expansions, with greedy ones, and with sampled ones."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from expandr_core.evaluation.leaderboard import MeasuredDataset
from expandr_core.options.evaluation import EvaluationOptions
from expandr_core.options.loop import JointLoopOptions
from expandr_core.stages import audit as audit_stage
from expandr_core.stages import leaderboard as leaderboard_stage
from expandr_core.stages.compare import StepOptions
from expandr_core.stages.leaderboard import RankedSystem, place_of
from expandr_core.store.artifacts import Artifact
from tasks.data import Evaluation
from tasks.datasets import MeasuredOn
from tasks.evaluate import identical_ids_warnings, measure_bm25, measure_retriever
from tasks.expand import empty_warnings, write_expansions, write_greedy
from tasks.retriever import encode_corpus
from tasks.stage import Workspace


@dataclass(frozen=True)
class ModelPair:
    """A language model and a retriever that are measured together.

    Attributes:
        title: as the leaderboard shows it.
        options: how the retriever is used and the LLM writes; of a run's models, those of the run.
        training: files of examples that the models were trained on, as far as they are known.
    """

    title: str
    llm: Artifact
    retriever: Artifact
    options: JointLoopOptions
    training: tuple[Artifact, ...]


@dataclass
class Suite:
    """Pairs of models on datasets, and the leaderboard of them.

    Attributes:
        work: where artifacts are kept; its seed is that of the first sample.
        samples: seeds of the sampled expansions.
        inputs: what the leaderboard is made of, by role.
        datasets: those that were measured on, in order.
    """

    work: Workspace
    pairs: list[ModelPair]
    options: EvaluationOptions
    samples: int
    inputs: dict[str, Artifact] = field(default_factory=dict)
    datasets: list[MeasuredDataset] = field(default_factory=list)

    def measure(self, found: MeasuredOn) -> None:
        """Measure every system on every part of a dataset."""
        name, parts = found.dataset.name, tuple(found.parts)
        for part, evaluation in found.parts.items():
            place = place_of(name, part)
            self.inputs[f"queries/{place}"] = evaluation.queries
            self.inputs[f"measured/{place}/bm25/0"] = measure_bm25(
                self.work, f"evaluate on {place}: BM25", evaluation, self.options
            )
            for number in range(len(self.pairs)):
                self._measure_pair(place, evaluation, number)
        self.datasets.append(
            MeasuredDataset(
                name=name,
                benchmark=found.dataset.benchmark,
                domain=found.dataset.domain,
                parts=parts,
            )
        )

    def _measure_pair(self, place: str, evaluation: Evaluation, number: int) -> None:
        pair = self.pairs[number]
        options, queries = pair.options.retriever, evaluation.queries
        which = f"{place}, {pair.title}"
        vectors = encode_corpus(self.work, evaluation.corpus, pair.retriever, options, which)

        def measure(what: str, expansions: Artifact | None = None) -> Artifact:
            return measure_retriever(
                self.work,
                f"evaluate on {place}: {pair.title}, {what}",
                evaluation,
                (pair.retriever, vectors, expansions),
                options.fusion.expansion_weight if expansions else 0.0,
                options,
                self.options,
            )

        before = measure("query only")
        self.inputs[f"measured/{place}/{_name(number, 'query')}/0"] = before
        for kind, written in self._expand(pair, queries, place).items():
            after = [
                measure(f"{kind} {sample}" if kind == "sampled" else kind, expansions)
                for sample, expansions in enumerate(written)
            ]
            system = _name(number, kind)
            for sample, evaluated in enumerate(after):
                self.inputs[f"measured/{place}/{system}/{sample}"] = evaluated
            title = f"audit on {place}: {pair.title}, {kind}"
            self.inputs[f"audit/{place}/{system}"] = self.work.make(
                title,
                "audit",
                audit_stage.OPTIONS(),
                {
                    "queries": queries,
                    "qrels": evaluation.qrels,
                    "corpus": evaluation.corpus,
                    "before": before,
                    **_numbered("expansions", written),
                    **_numbered("after", after),
                    **_numbered("training", pair.training),
                },
            )

    def _expand(self, pair: ModelPair, queries: Artifact, place: str) -> dict[str, list[Artifact]]:
        """Expand the queries greedily, and once for each seed."""
        written = {}
        title = f"expand the queries of {place}"
        if self.options.greedy:
            written["greedy"] = [
                write_greedy(
                    self.work,
                    queries,
                    pair.llm,
                    pair.options,
                    f"{title} greedily, {pair.title}",
                )
            ]
        if self.samples:
            written["sampled"] = [
                write_expansions(
                    self.work.model_copy(update={"seed": self.work.seed + sample}),
                    queries,
                    pair.llm,
                    pair.options,
                    f"{title}, seed {self.work.seed + sample}, {pair.title}",
                )
                for sample in range(self.samples)
            ]
        return written

    def leaderboard(self) -> Artifact:
        """Rank all systems; each pair's expansions are compared with its own queries alone."""
        systems, steps = [RankedSystem(name="bm25", title="BM25")], []
        kinds = {"query": ("query only", 1)}
        if self.options.greedy:
            kinds["greedy"] = "+ expansion, greedy", 1
        if self.samples:
            kinds["sampled"] = "+ expansion, sampled", self.samples
        for number, pair in enumerate(self.pairs):
            prefix = f"{pair.title}: " if len(self.pairs) > 1 else ""
            for kind, (title, samples) in kinds.items():
                name = _name(number, kind)
                baseline = _name(number, "query") if kind != "query" else ""
                systems.append(
                    RankedSystem(
                        name=name, title=f"{prefix}{title}", baseline=baseline, samples=samples
                    )
                )
                if baseline:
                    question = "Does the expansion help?"
                    steps.append(StepOptions(before=baseline, after=name, question=question))
                if number:
                    question = "Are these models better than the first?"
                    first = _name(0, kind)
                    steps.append(StepOptions(before=first, after=name, question=question))
        options = leaderboard_stage.OPTIONS(
            systems=tuple(systems),
            datasets=tuple(self.datasets),
            steps=tuple(steps),
            test=self.options.significance.test,
            significance_level=self.options.significance.significance_level,
            warnings=(
                *empty_warnings(self.work.made),
                *identical_ids_warnings(
                    {
                        place_of(dataset.name, part): self.inputs[
                            f"measured/{place_of(dataset.name, part)}/bm25/0"
                        ]
                        for dataset in self.datasets
                        for part in dataset.parts
                    }
                ),
            ),
        )
        return self.work.make("rank the systems", "leaderboard", options, self.inputs)


def _name(number: int, kind: str) -> str:
    """Name a system of the n-th pair of models.

    >>> _name(0, "query"), _name(1, "sampled")
    ('query', 'sampled-2')
    """
    return f"{kind}-{number + 1}" if number else kind


def _numbered(role: str, artifacts: Iterable[Artifact]) -> dict[str, Artifact]:
    return {f"{role}-{number}": artifact for number, artifact in enumerate(artifacts)}


def publish_leaderboard(work: Workspace, leaderboard: Artifact) -> None:
    """Show the leaderboard as an artifact in Prefect."""
    work.publish(leaderboard, "leaderboard.md", "leaderboard")
