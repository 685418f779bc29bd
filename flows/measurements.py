"""Which systems the loop measures, and which contrasts between them are tested."""

from expandr_core.evaluation.comparison import MeasuredDataset
from expandr_core.evaluation.verdict import Kept
from expandr_core.store.artifacts import Artifact
from flows.run import Models, Run
from tasks.comparison import Comparison, Measured
from tasks.retriever import train_retriever


def open_comparison(run: Run, split: str) -> Comparison:
    """Open the comparison of the systems on one split."""
    measured = Measured(MeasuredDataset(name=split), {"": run.data.evaluations[split]})
    return Comparison(run.work, run.options.evaluate, [measured])


def measure_start(run: Run, systems: Comparison, base: Models) -> Artifact:
    """Measure what there is before the first round; return the control trained without expansions."""
    usage = run.options.retriever
    untrained = systems.expand(base.llm, run.options, "untrained LLM")
    systems.bm25("bm25", "BM25")
    systems.bm25("bm25-untrained", "BM25, + untrained expansion", untrained)
    systems.dense("query", "query only", base.retriever, usage)
    systems.dense("untrained", "+ untrained expansion", base.retriever, usage, untrained)
    systems.dense(
        "untrained-alone",
        "untrained expansion alone",
        base.retriever,
        usage,
        untrained,
        "expansion",
    )
    systems.ask("query", "untrained", "Does an untrained expansion help?", baseline=True)
    if run.options.evaluate.greedy:
        greedy = systems.expand_greedily(base.llm, run.options, "untrained LLM")
        systems.dense(
            "untrained-greedy", "+ untrained expansion, greedy", base.retriever, usage, greedy
        )
    options = run.options
    control = train_retriever(
        run.work,
        run.data.retriever,
        run.data.collection,
        base.retriever,
        base.retriever,
        None,
        options,
        "train the SFT control",
    )
    systems.dense("control", "SFT control", control, usage)
    systems.dense(
        "control-untrained", "SFT control, + untrained expansion", control, usage, untrained
    )
    systems.ask("query", "control", "Does training without expansions help?", baseline=True)
    return control


def measure_round(
    run: Run,
    systems: Comparison,
    control: Artifact,
    base: Models,
    previous: Models,
    current: Models,
) -> None:
    """Measure the models of a round together, and each beside what it replaces."""
    n = current.round
    aligned, joint, before = f"aligned-{n}", f"round-{n}", f"round-{n - 1}"
    usage = run.options.retriever
    expansions = systems.expand(current.llm, run.options, f"round {n}")
    retriever = current.retriever
    systems.dense(aligned, f"+ DPO'd expansion, round {n}", base.retriever, usage, expansions)
    systems.dense(
        f"control-{aligned}", f"SFT control, + DPO'd, round {n}", control, usage, expansions
    )
    if n > 1:
        title = f"retriever of round {n - 1}, + DPO'd, round {n}"
        systems.dense(f"{before}-{aligned}", title, previous.retriever, usage, expansions)
    systems.dense(joint, f"joint round {n}", retriever, usage, expansions)
    systems.dense(f"{joint}-query", f"joint round {n}, query only", retriever, usage)
    alone = f"joint round {n}, expansion alone"
    systems.dense(f"{joint}-alone", alone, retriever, usage, expansions, "expansion")
    if run.options.evaluate.greedy:
        greedy = systems.expand_greedily(current.llm, run.options, f"round {n}")
        systems.dense(
            f"{aligned}-greedy", f"+ DPO'd, round {n}, greedy", base.retriever, usage, greedy
        )
        systems.dense(f"{joint}-greedy", f"joint round {n}, greedy", retriever, usage, greedy)
        systems.ask(f"{aligned}-greedy", f"{joint}-greedy", "Does retraining help, greedily?")

    before_dpo = "untrained" if n == 1 else f"aligned-{n - 1}"
    systems.ask(before_dpo, aligned, "Does DPO help the base retriever?")
    question = "Is the query with a DPO'd expansion better than alone?"
    systems.ask("query", aligned, question, baseline=True)
    systems.ask(aligned, joint, "Does retraining the retriever help?")
    systems.ask("query", joint, "Is the joint loop better than the query alone?", baseline=True)
    systems.ask("control", joint, "Is the joint loop better than training without expansions?")
    systems.ask(f"control-{aligned}", joint, "Do expansions in training help, expansions equal?")
    if n > 1:
        systems.ask(before, joint, "Is this round better than the last?")


def measure_on_dev(run: Run, dev: Comparison, models: Models) -> None:
    """Measure the models of a round on the part that chooses the best round."""
    n = models.round
    expansions = dev.expand(models.llm, run.options, f"round {n}" if n else "untrained LLM")
    dev.dense(f"round-{n}", f"round {n}", models.retriever, run.options.retriever, expansions)


def kept(best: Models, rounds: int) -> Kept:
    """Tell the report which models are kept, and why."""
    if not best.round:
        reason = (
            "No round was better than the start on the dev part; the models of the start are kept."
        )
        return Kept(expanded="untrained", alone="query", reason=reason)
    name = f"round-{best.round}"
    reason = f"Round {best.round} of {rounds} was best on the dev part; its models are kept."
    return Kept(expanded=name, alone=f"{name}-query", reason=reason)
