"""Which systems the loop measures, and which contrasts between them are tested."""

from dataclasses import replace

from expandr_core.evaluation.comparison import MeasuredDataset
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.training import AlignOptions
from expandr_core.store.artifacts import Artifact
from flows.choice import Choice, kept
from flows.distilled import distil_kept, measure_distilled
from tasks.comparison import Comparison, Expansions, Measured
from tasks.data import Data
from tasks.gating import Both, learn_gate, measure_variants
from tasks.models import Models
from tasks.pipeline import Future, Pipeline
from tasks.references import ask_references, measure_bm25, measure_references
from tasks.retriever import train_retriever


def open_comparison(data: Data, split: str, purpose: str = "") -> Comparison:
    """Open the comparison of the systems on one split."""
    measured = Measured(MeasuredDataset(name=split), {"": data.evaluations[split]})
    return Comparison([measured], purpose=purpose)


class RoundsReport:
    """What the loop measures on the reported split.

    Attributes:
        systems: measured so far.
        dev: what is measured on the split that chooses the best round.
        choices: which rounds were kept, and why.
    """

    def __init__(self, data: Data):
        """Measure nothing yet."""
        self.systems = open_comparison(data, data.reported)
        self.dev = open_comparison(data, "dev", "choose/")
        self.choices: list[Choice] = []
        self._data = data
        self._control: Future[Artifact] | None = None

    def begin(self, pipeline: Pipeline, base: Models) -> list[Future[object]]:
        """Train the control, if a retriever is trained at all, and measure the start."""
        if pipeline.options.loop.order != "align_only":
            self._control = pipeline.submit(
                "train the control", train_control, self._data, base.retriever
            )
        start = pipeline.submit(
            "measure the start", measure_start, self.systems, base, self._control, self._data
        )
        return [start]

    def expand(
        self, pipeline: Pipeline, llm: Artifact, name: str, which: str
    ) -> Future[Expansions]:
        """Let the LLM of a round expand the queries to measure on."""
        [measured] = self.systems.datasets
        title = f"expand the {measured.dataset.name} queries"
        return pipeline.submit(title, self.systems.expand, llm, name, which)

    def measure(
        self,
        pipeline: Pipeline,
        base: Models,
        previous: Models,
        current: Models,
        expansions: Expansions,
    ) -> Future[None]:
        """Measure the models of a round together, and each beside what it replaces."""
        control = self._control and self._control.result()
        training = self._data.preference, self._data.retriever
        arguments = self.systems, control, base, previous, current, expansions, training
        return pipeline.submit("measure the round", measure_round, *arguments)

    def end(self, pipeline: Pipeline, best: Models) -> tuple[Artifact, Models]:
        """Learn the gate of the best models on dev, measure it, and write the report.

        A gate is not measured on the queries that it is learned on, where there are no others. The
        models are distilled if that is asked for.

        Returns:
            The report, and the best models with their gate and their distilled query encoder.
        """
        chosen = kept(pipeline.options, self.choices)
        if chosen.alone != "query":
            question = "Do expansions at search help the retriever that is kept?"
            self.systems.ask(chosen.alone, chosen.expanded, question)
        ask_references(self.systems, chosen.expanded, "Is the system that is kept better than {}?")
        both = Both(chosen.alone, chosen.expanded, best.retriever, baseline="query")
        if pipeline.options.gate.mode != "off":
            gate = learn_gate(pipeline, self.dev, f"round-{best.round}", best.retriever)
            best = replace(best, gate=gate)
        unseen = best.gate if self._data.reported != "dev" else None
        measure_variants(pipeline, self.systems, both, unseen)
        if pipeline.options.distil.enabled:
            student = distil_kept(pipeline, self._data, best)
            best = replace(best, distilled=student)
            training = self._data.preference, self._data.retriever
            teacher = best.retriever
            chosen = measure_distilled(pipeline, self.systems, teacher, student, chosen, training)
        return self.systems.report(pipeline, kept=chosen), best


def train_control(pipeline: Pipeline, data: Data, start: Artifact) -> Artifact:
    """Train the retriever without expansions."""
    return train_retriever(pipeline, data.retriever, data.collection, None, start, start)


def measure_start(
    pipeline: Pipeline,
    systems: Comparison,
    base: Models,
    training: Future[Artifact] | None,
    data: Data,
) -> None:
    """Measure what there is before the first round; `training` makes the control, if there is one."""
    untrained = systems.expand(pipeline, base.llm, "sampled", "untrained LLM")
    measure_references(pipeline, systems)
    measure_bm25(pipeline, systems, "bm25-untrained", "BM25, + untrained expansion", untrained)
    systems.dense(pipeline, "query", "query only", base.retriever)
    systems.dense(pipeline, "untrained", "+ untrained expansion", base.retriever, untrained)
    systems.dense(
        pipeline,
        "untrained-alone",
        "untrained expansion alone",
        base.retriever,
        untrained,
        "expansion",
    )
    systems.ask("query", "untrained", "Does an untrained expansion help?", baseline=True)
    if pipeline.options.evaluate.greedy:
        greedy = systems.expand_greedily(pipeline, base.llm, "greedy", "untrained LLM")
        systems.dense(
            pipeline, "untrained-greedy", "+ untrained expansion, greedy", base.retriever, greedy
        )
    if training is None:
        return
    control = training.result()
    systems.dense(pipeline, "control", "control, trained without expansions", control)
    systems.dense(
        pipeline, "control-untrained", "control, + untrained expansion", control, untrained
    )
    systems.ask("query", "control", "Does training without expansions help?", baseline=True)
    systems.audit(pipeline, "query", "control", None, (data.retriever,))


def as_trained(pipeline: Pipeline, base: Models, llm: Artifact) -> Pipeline:
    """View a round that leaves the LLM of the start as it is as one that trains the retriever only."""
    if llm != base.llm:
        return pipeline
    loop = pipeline.options.loop.model_copy(update={"order": "retriever_only"})
    return pipeline.changed(loop=loop)


def measure_round(
    pipeline: Pipeline,
    systems: Comparison,
    control: Artifact | None,
    base: Models,
    previous: Models,
    current: Models,
    expansions: Expansions,
    training: tuple[Artifact, ...],
) -> None:
    """Measure the models of a round together, and each beside what it replaces; audit the gain.

    A model that the rounds leave as it is (`loop.order`) brings no systems of its own.
    """
    order, n, origin = pipeline.options.loop.order, current.round, previous.round
    plain, aligned = _plain(order, n), _aligned(pipeline.options.align)
    if order != "retriever_only":
        title = f"+ {aligned} expansion, round {n}"
        systems.dense(pipeline, plain, title, base.retriever, expansions)
    if control and order != "retriever_only":
        title = f"control, + {aligned} expansion, round {n}"
        systems.dense(pipeline, f"control-{plain}", title, control, expansions)
        if origin:
            title = f"retriever of round {origin}, + {aligned} expansion, round {n}"
            systems.dense(
                pipeline, f"round-{origin}-{plain}", title, previous.retriever, expansions
            )
    if order != "align_only":
        _measure_retrained(pipeline, systems, previous, current, expansions)
    systems.audit(pipeline, "query", f"round-{n}", expansions, training)
    if pipeline.options.evaluate.greedy:
        _measure_greedily(pipeline, systems, base, current)
    before = _plain(order, origin if previous.llm != base.llm else 0)
    _ask_about_round(pipeline.options, systems, n, origin, before)


def _plain(order: str, number: int) -> str:
    """Name the system of the base retriever with what the LLM of a round writes."""
    if order == "retriever_only" or not number:
        return "untrained"
    return f"round-{number}" if order == "align_only" else f"aligned-{number}"


def _aligned(options: AlignOptions) -> str:
    """Say how an expansion's LLM was aligned."""
    return "DPO'd" if options.method == "dpo" else f"{options.method.upper()}-aligned"


def _joint_title(order: str, number: int) -> str:
    """Say what a round's LLM and retriever are together."""
    if order == "retriever_only":
        return f"retriever of round {number}, + untrained expansion"
    return f"joint round {number}"


def _measure_retrained(
    pipeline: Pipeline,
    systems: Comparison,
    previous: Models,
    current: Models,
    expansions: Expansions,
) -> None:
    """Measure the retriever of a round, with the round's expansions and without."""
    order, n, retriever = pipeline.options.loop.order, current.round, current.retriever
    name, title = f"round-{n}", _joint_title(order, n)
    if order == "retriever_first":
        written = systems.expand(pipeline, previous.llm, "before", f"before round {n}")
        before = f"retriever of round {n}, + expansion before its alignment"
        systems.dense(pipeline, f"{name}-before", before, retriever, written)
    systems.dense(pipeline, name, title, retriever, expansions)
    alone = f"joint round {n}" if order != "retriever_only" else f"retriever of round {n}"
    systems.dense(pipeline, f"{name}-query", f"{alone}, query only", retriever)
    systems.dense(
        pipeline, f"{name}-alone", f"{alone}, expansion alone", retriever, expansions, "expansion"
    )


def _measure_greedily(
    pipeline: Pipeline, systems: Comparison, base: Models, current: Models
) -> None:
    """Measure the models of a round with the likeliest expansions."""
    order, n = pipeline.options.loop.order, current.round
    aligned = _aligned(pipeline.options.align)
    plain, joint = f"{_plain(order, n)}-greedy", f"round-{n}-greedy"
    greedy = systems.expand_greedily(pipeline, current.llm, "greedy", f"round {n}")
    if order != "retriever_only":
        systems.dense(pipeline, plain, f"+ {aligned}, round {n}, greedy", base.retriever, greedy)
    if order != "align_only":
        title = f"{_joint_title(order, n)}, greedy"
        systems.dense(pipeline, joint, title, current.retriever, greedy)
        systems.ask(plain, joint, "Does retraining help, greedily?")


def _ask_about_round(
    options: JointLoopOptions, systems: Comparison, n: int, origin: int, before: str
) -> None:
    """Ask what each training of a round has brought."""
    order, method = options.loop.order, options.align.method.upper()
    aligned = _aligned(options.align)
    plain, joint = _plain(order, n), f"round-{n}"
    if order != "retriever_only":
        systems.ask(before, plain, f"Does {method} help the base retriever?")
        question = f"Is the query with a {aligned} expansion better than alone?"
        systems.ask("query", plain, question, baseline=True)
    if order == "align_only":
        return
    what = "retrained retriever" if order == "retriever_only" else "joint loop"
    if order == "retriever_first":
        systems.ask(f"{joint}-before", joint, f"Does {method} help the retrained retriever?")
    systems.ask(plain, joint, "Does retraining the retriever help, when expansions are used?")
    systems.ask("query", joint, f"Is the {what} better than the query alone?", baseline=True)
    systems.ask("control", joint, f"Is the {what} better than training without expansions?")
    question = "Do expansions in training help, with the same expansions at search?"
    systems.ask(f"control-{plain}", joint, question)
    if origin:
        question = "Is this round better than the one whose models it started from?"
        systems.ask(f"round-{origin}", joint, question)
