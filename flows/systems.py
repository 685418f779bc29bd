"""Which systems are measured, and which steps between them are tested."""

from expandr_core.store.artifacts import Artifact
from flows.run import Models, Run
from tasks.evaluate import Scoreboard
from tasks.expand import write_expansions, write_greedy
from tasks.retriever import train_retriever


def open_scoreboard(run: Run, split: str) -> Scoreboard:
    """Open the table of the systems measured on one split."""
    evaluation = run.data.evaluations[split]
    return Scoreboard(run.work, evaluation, split, run.options.retriever, run.options.evaluate)


def expand_for(run: Run, board: Scoreboard, llm: Artifact, which: str) -> Artifact:
    """Expand the queries of a scoreboard as the options say, mostly sampled."""
    title = f"expand the {board.split} queries, {which}"
    return write_expansions(run.work, board.evaluation.queries, llm, run.options, title)


def expand_greedily_for(run: Run, board: Scoreboard, llm: Artifact, which: str) -> Artifact:
    """Expand the queries of a scoreboard with the likeliest tokens."""
    title = f"expand the {board.split} queries greedily, {which}"
    return write_greedy(run.work, board.evaluation.queries, llm, run.options, title)


def measure_start(run: Run, board: Scoreboard, base: Models) -> Artifact:
    """Measure what there is before the first round; return the control trained without expansions."""
    untrained = expand_for(run, board, base.llm, "untrained LLM")
    board.bm25("bm25", "BM25")
    board.bm25("bm25-untrained", "BM25, + untrained expansion", untrained)
    board.dense("query", "query only", base.retriever)
    board.dense("untrained", "+ untrained expansion", base.retriever, untrained)
    board.dense(
        "untrained-alone", "untrained expansion alone", base.retriever, untrained, "expansion"
    )
    board.step("query", "untrained", "Does an untrained expansion help?")
    if run.options.evaluate.greedy:
        greedy = expand_greedily_for(run, board, base.llm, "untrained LLM")
        board.dense("untrained-greedy", "+ untrained expansion, greedy", base.retriever, greedy)
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
    board.dense("control", "SFT control", control)
    board.dense("control-untrained", "SFT control, + untrained expansion", control, untrained)
    board.step("query", "control", "Does training without expansions help?")
    return control


def measure_round(
    run: Run, board: Scoreboard, control: Artifact, base: Models, previous: Models, current: Models
) -> None:
    """Measure the models of a round together, and each beside what it replaces."""
    n = current.round
    aligned, joint, before = f"aligned-{n}", f"round-{n}", f"round-{n - 1}"
    expansions = expand_for(run, board, current.llm, f"round {n}")
    retriever = current.retriever
    board.dense(aligned, f"+ DPO'd expansion, round {n}", base.retriever, expansions)
    board.dense(f"control-{aligned}", f"SFT control, + DPO'd, round {n}", control, expansions)
    if n > 1:
        title = f"retriever of round {n - 1}, + DPO'd, round {n}"
        board.dense(f"{before}-{aligned}", title, previous.retriever, expansions)
    board.dense(joint, f"joint round {n}", retriever, expansions)
    board.dense(f"{joint}-query", f"joint round {n}, query only", retriever)
    alone = f"joint round {n}, expansion alone"
    board.dense(f"{joint}-alone", alone, retriever, expansions, "expansion")
    if run.options.evaluate.greedy:
        greedy = expand_greedily_for(run, board, current.llm, f"round {n}")
        board.dense(f"{aligned}-greedy", f"+ DPO'd, round {n}, greedy", base.retriever, greedy)
        board.dense(f"{joint}-greedy", f"joint round {n}, greedy", retriever, greedy)
        board.step(f"{aligned}-greedy", f"{joint}-greedy", "Does retraining help, greedily?")

    before_dpo = "untrained" if n == 1 else f"aligned-{n - 1}"
    board.step(before_dpo, aligned, "Does DPO help the base retriever?")
    board.step("query", aligned, "Is the query with a DPO'd expansion better than alone?")
    board.step(aligned, joint, "Does retraining the retriever help?")
    board.step("control", joint, "Is the joint loop better than training without expansions?")
    board.step(f"control-{aligned}", joint, "Do expansions in training help, expansions equal?")
    if n > 1:
        board.step(before, joint, "Is this round better than the last?")


def measure_on_dev(run: Run, dev: Scoreboard, models: Models) -> None:
    """Measure the models of a round on the part that chooses the best round."""
    n = models.round
    expansions = expand_for(run, dev, models.llm, f"round {n}" if n else "untrained LLM")
    dev.dense(f"round-{n}", f"round {n}", models.retriever, expansions)
