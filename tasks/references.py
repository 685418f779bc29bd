"""Measure BM25, which no training affects: alone, with RM3, and with expansions."""

from expandr_core.stages.bm25_index import BM25IndexOptions
from expandr_core.stages.evaluate_bm25 import EvaluateBM25Options
from tasks.comparison import Comparison, Expansions
from tasks.pipeline import Pipeline


def measure_references(pipeline: Pipeline, systems: Comparison) -> None:
    """Measure BM25 and, if the options ask for it, RM3."""
    measure_bm25(pipeline, systems, "bm25", "BM25")
    if pipeline.options.evaluate.rm3:
        measure_bm25(pipeline, systems, "bm25-rm3", "BM25 with RM3", rm3=True)


def ask_references(systems: Comparison, name: str, question: str) -> None:
    """Ask whether a system is better than each of these references."""
    for each in [systems.systems.get("bm25"), systems.systems.get("bm25-rm3")]:
        if each:
            systems.ask(each.name, name, question.format(each.title))


def measure_bm25(
    pipeline: Pipeline,
    systems: Comparison,
    name: str,
    title: str,
    expansions: Expansions | None = None,
    rm3: bool = False,
) -> None:
    """Measure BM25 with the query, and perhaps with what an LLM or RM3 adds to it."""
    options = pipeline.options.evaluate
    for step, role, key, written in systems.cells(pipeline, name, title, expansions):
        evaluation = systems.evaluations[key]
        indexed = evaluation.corpus.digest, options.bm25_language
        if indexed not in systems.indices:
            systems.indices[indexed] = pipeline.step(
                "bm25_index",
                {"corpus": evaluation.corpus},
                f"index {key} for BM25",
                options=BM25IndexOptions(language=options.bm25_language),
                name=f"{systems.purpose}{key}",
            )
        inputs = {"index": systems.indices[indexed], "expansions": written, **evaluation.judged}
        if rm3:
            inputs["corpus"] = evaluation.corpus
        systems.inputs[role] = pipeline.step(
            "evaluate_bm25",
            inputs,
            step,
            options=EvaluateBM25Options.of(options, evaluation.identical_ids, bool(written), rm3),
            name=systems.purpose + role.removeprefix("measured/"),
        )
