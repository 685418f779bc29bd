"""Which systems the loop measures, and which contrasts between them are tested."""

from expandr_core.evaluation.comparison import MeasuredDataset
from expandr_core.evaluation.verdict import Kept
from expandr_core.store.artifacts import Artifact
from tasks.comparison import Comparison, Expansions, Measured
from tasks.data import Data
from tasks.models import Models
from tasks.pipeline import Future, Pipeline
from tasks.retriever import train_retriever


def open_comparison(data: Data, split: str, purpose: str = "") -> Comparison:
    """Open the comparison of the systems on one split."""
    measured = Measured(MeasuredDataset(name=split), {"": data.evaluations[split]})
    return Comparison([measured], purpose=purpose)


def train_control(pipeline: Pipeline, data: Data, start: Artifact) -> Artifact:
    """Train the retriever without expansions."""
    return train_retriever(pipeline, data.retriever, data.collection, None, start, start)


def measure_start(
    pipeline: Pipeline, systems: Comparison, base: Models, training: Future[Artifact]
) -> Artifact:
    """Measure what there is before the first round; `training` makes the control, which is returned."""
    untrained = systems.expand(pipeline, base.llm, "sampled", "untrained LLM")
    systems.bm25(pipeline, "bm25", "BM25")
    systems.bm25(pipeline, "bm25-untrained", "BM25, + untrained expansion", untrained)
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
    control = training.result()
    systems.dense(pipeline, "control", "SFT control", control)
    systems.dense(
        pipeline, "control-untrained", "SFT control, + untrained expansion", control, untrained
    )
    systems.ask("query", "control", "Does training without expansions help?", baseline=True)
    return control


def measure_round(
    pipeline: Pipeline,
    systems: Comparison,
    control: Artifact,
    base: Models,
    previous: Models,
    current: Models,
    expansions: Expansions,
) -> None:
    """Measure the models of a round together, and each beside what it replaces."""
    n, origin = current.round, previous.round
    aligned, joint, before = f"aligned-{n}", f"round-{n}", f"round-{origin}"
    retriever = current.retriever
    systems.dense(pipeline, aligned, f"+ DPO'd expansion, round {n}", base.retriever, expansions)
    systems.dense(
        pipeline, f"control-{aligned}", f"SFT control, + DPO'd, round {n}", control, expansions
    )
    if origin:
        title = f"retriever of round {origin}, + DPO'd, round {n}"
        systems.dense(pipeline, f"{before}-{aligned}", title, previous.retriever, expansions)
    systems.dense(pipeline, joint, f"joint round {n}", retriever, expansions)
    systems.dense(pipeline, f"{joint}-query", f"joint round {n}, query only", retriever)
    alone = f"joint round {n}, expansion alone"
    systems.dense(pipeline, f"{joint}-alone", alone, retriever, expansions, "expansion")
    if pipeline.options.evaluate.greedy:
        greedy = systems.expand_greedily(pipeline, current.llm, "greedy", f"round {n}")
        systems.dense(
            pipeline, f"{aligned}-greedy", f"+ DPO'd, round {n}, greedy", base.retriever, greedy
        )
        systems.dense(pipeline, f"{joint}-greedy", f"joint round {n}, greedy", retriever, greedy)
        systems.ask(f"{aligned}-greedy", f"{joint}-greedy", "Does retraining help, greedily?")

    before_dpo = f"aligned-{origin}" if origin else "untrained"
    systems.ask(before_dpo, aligned, "Does DPO help the base retriever?")
    question = "Is the query with a DPO'd expansion better than alone?"
    systems.ask("query", aligned, question, baseline=True)
    systems.ask(aligned, joint, "Does retraining the retriever help?")
    systems.ask("query", joint, "Is the joint loop better than the query alone?", baseline=True)
    systems.ask("control", joint, "Is the joint loop better than training without expansions?")
    systems.ask(f"control-{aligned}", joint, "Do expansions in training help, expansions equal?")
    if origin:
        question = "Is this round better than the one whose models it started from?"
        systems.ask(before, joint, question)


def measure_start_on_dev(pipeline: Pipeline, dev: Comparison, base: Models) -> None:
    """Measure the models of the start on the split that chooses the best round."""
    expansions = dev.expand(pipeline, base.llm, "sampled", "untrained LLM")
    measure_on_dev(pipeline, dev, base, expansions)


def measure_on_dev(
    pipeline: Pipeline, dev: Comparison, models: Models, expansions: Expansions
) -> None:
    """Measure the models of a round on the split that chooses the best round."""
    n = models.round
    dev.dense(pipeline, f"round-{n}", f"round {n}", models.retriever, expansions)


def kept(best: Models, rounds: int) -> Kept:
    """Tell the report which models are kept, and why."""
    if not best.round:
        reason = "No round beat the start on the dev queries; the models of the start are kept."
        return Kept(expanded="untrained", alone="query", reason=reason)
    name = f"round-{best.round}"
    reason = f"Round {best.round} of {rounds} was best on the dev queries; its models are kept."
    return Kept(expanded=name, alone=f"{name}-query", reason=reason)
