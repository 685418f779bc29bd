"""Which round is kept: a paired test on the dev queries tells, against what was kept before it."""

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow.parquet as pq
from prefect import get_run_logger

from expandr_core.evaluation.render import counted, format_p, signed
from expandr_core.evaluation.significance import Test, fewest_to_tell
from expandr_core.evaluation.verdict import Kept
from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.store import Store
from tasks.comparison import Comparison, Expansions, Gain
from tasks.models import Models
from tasks.pipeline import Pipeline


class Choice(NamedTuple):
    """Whether a round was kept.

    Attributes:
        round: its number.
        before: the round that was kept before; 0 is the start.
        gain: in nDCG@10 on the dev queries.
        kept: whether it replaced the one before.
    """

    round: int
    before: int
    gain: Gain
    kept: bool


def measure_start_on_dev(pipeline: Pipeline, dev: Comparison, base: Models) -> None:
    """Measure the models of the start on the split that chooses the best round.

    Warns if it has too few queries for any round to be kept.
    """
    level, queries = pipeline.options.loop.keep_level, dev.evaluations["dev"].queries
    test = pipeline.options.evaluate.significance.test

    def count(store: Store) -> int:
        table = pq.read_table(store.local(queries), columns=["cluster"])
        return len(table["cluster"].unique())

    clusters = pipeline.ask(count, predicted=_fewest(level, test))
    if too_few := _too_few(level, test, clusters):
        get_run_logger().warning("no round can be kept: %s", too_few)
    expansions = dev.expand(pipeline, base.llm, "sampled", "untrained LLM")
    measure_on_dev(pipeline, dev, base, expansions)


def measure_on_dev(
    pipeline: Pipeline, dev: Comparison, models: Models, expansions: Expansions
) -> None:
    """Measure the models of a round on the split that chooses the best round."""
    n = models.round
    dev.dense(pipeline, f"round-{n}", f"round {n}", models.retriever, expansions)


def choose(pipeline: Pipeline, dev: Comparison, best: Models, current: Models) -> Choice:
    """Decide whether the models of a round replace the best so far."""
    gain = dev.gain(pipeline, f"round-{best.round}", f"round-{current.round}")
    better = gain.difference > 0 and gain.p <= pipeline.options.loop.keep_level
    choice = Choice(current.round, best.round, gain, better)
    said = "kept" if better else "not kept"
    get_run_logger().info("%s on dev: %s", _tested(choice), said)
    return choice


def kept(options: JointLoopOptions, choices: Sequence[Choice]) -> Kept:
    """Tell the report which models are kept, and why.

    >>> choices = [Choice(1, 0, Gain(0.1, 1e-4, 50), True), Choice(2, 1, Gain(0.01, 0.2, 50), False)]
    >>> for sentence in kept(JointLoopOptions(), choices).reason.replace(": ", "; ").split("; "):
    ...     print(sentence)
    The models of round 1 are kept. nDCG@10 on the dev queries
    round 1 +0.100 against the start (p = 1.0e-04), round 2 +0.010 against round 1 (p = 0.200)
    a round is kept if it gains with p up to 0.05.
    """
    best = max((each.round for each in choices if each.kept), default=0)
    level = options.loop.keep_level
    rule = "if it scores higher" if level == 1 else f"if it gains with p up to {level:g}"
    said = ", ".join(_tested(each) for each in choices)
    reason = (
        f"The models of {_name(best)} are kept. nDCG@10 on the dev queries: {said}; "
        f"a round is kept {rule}."
    )
    test, fewest = options.evaluate.significance.test, min(each.gain.clusters for each in choices)
    if too_few := _too_few(level, test, fewest):
        reason += f" {too_few}."
    if not best:
        return Kept(expanded="untrained", alone="query", reason=reason)
    name = f"round-{best}"
    return Kept(
        expanded=name,
        alone="query" if options.loop.order == "align_only" else f"{name}-query",
        reason=reason,
    )


def _name(number: int) -> str:
    return f"round {number}" if number else "the start"


def _tested(choice: Choice) -> str:
    """Say what a round has gained."""
    gain, before = choice.gain, _name(choice.before)
    change = f"{signed(gain.difference)} against {before} (p = {format_p(gain.p)})"
    return f"{_name(choice.round)} {change}"


def _fewest(level: float, test: Test) -> int:
    """Return how many observations a test needs for a p of a level or less.

    >>> [_fewest(level, "t") for level in (0.001, 0.05, 2 / 2**5, 1)], _fewest(0.001, "randomisation")
    ([10, 6, 5, 1], 11)
    """
    return fewest_to_tell(level * (1 + 1e-9), test)  # p may equal this level


def _too_few(level: float, test: Test, clusters: int) -> str:
    """Say that so few dev queries cannot show a gain at a level; empty if they can."""
    least = _fewest(level, test)
    if clusters >= least:
        return ""
    return (
        f"{counted(clusters, 'dev query', 'dev queries')} (or clusters of them) cannot show a gain at "
        f"p = {level:g}, which takes {least}: give more, or raise loop.keep_level (1 keeps "
        "whatever scores higher)"
    )
