"""Expand alone: let a language model write for queries."""

from typing import Literal

from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.run_records import Step
from tasks.expand import write_answers, write_candidates, write_expansions, write_greedy
from tasks.pipeline import Pipeline
from tasks.placement import Placement

Kind = Literal["expansions", "greedy", "candidates", "answers"]

HERE = Placement()


@flow(name="expand")
def expand(
    options: JointLoopOptions,
    llm: str,
    queries: str,
    kind: Kind = "expansions",
    placement: Placement = HERE,
    store: str = "store",
) -> list[Step]:
    """Write expansions, candidates or answers.

    Args:
        options: The options of every stage; `expand` and `seed` matter here.
        llm: Key of a language model.
        queries: Key and file, such as prepare-1f3a/test_queries.parquet.
        kind: What to write.
        placement: Where each kind of stage runs.
        store: Folder or s3:// URL that keeps every artifact.
    """
    pipeline = Pipeline(store, options, placement)
    found = (pipeline.find(queries), pipeline.find(llm))
    if kind == "candidates":
        write_candidates(pipeline, *found)
    elif kind == "answers":
        write_answers(pipeline, *found)
    elif kind == "greedy":
        write_greedy(pipeline, *found, "expand greedily", kind)
    else:
        samples = options.training.expansions_per_query
        write_expansions(pipeline, *found, "expand", kind, samples)
    return list(pipeline.steps)
