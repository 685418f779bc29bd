"""Expand alone: let a language model write for queries."""

from typing import Literal

from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from tasks.expand import write_answers, write_candidates, write_expansions, write_greedy
from tasks.placement import Placement
from tasks.stage import Workspace

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
) -> list[tuple[str, Artifact]]:
    """Write expansions, candidates or answers.

    Args:
        options: The options of every stage; `expand` and `seed` matter here.
        llm: Key of a language model.
        queries: Key and file, such as prepare-1f3a/test_queries.parquet.
        kind: What to write.
        placement: Where each kind of stage runs.
        store: Folder or s3:// URL that keeps every artifact.
    """
    work = Workspace(store=store, seed=options.seed, device=options.device, placement=placement)
    found = (work.find(queries), work.find(llm))
    if kind == "candidates":
        write_candidates(work, *found, options)
    elif kind == "answers":
        write_answers(work, *found, options)
    elif kind == "greedy":
        write_greedy(work, *found, options, "expand greedily")
    else:
        samples = options.training.expansions_per_query
        write_expansions(work, *found, options, "expand", samples)
    return work.made
