"""Retriever alone: train it on queries and their expansions."""

from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from tasks.placement import Placement
from tasks.retriever import train_retriever
from tasks.stage import Workspace

HERE = Placement()


@flow(name="retriever")
def retriever(
    options: JointLoopOptions,
    start: str,
    examples: str,
    corpus: str = "",
    expansions: str = "",
    placement: Placement = HERE,
    store: str = "store",
) -> list[tuple[str, Artifact]]:
    """Train a retriever, with expansions or, as a control, without.

    Args:
        options: The options of every stage; `training`, `retriever` and `seed` matter here.
        start: Key of the retriever to start from; it also mines the hard negatives.
        examples: Key and file of training queries, such as prepare-1f3a/retriever.parquet.
        corpus: Key and file of the passages to mine in; empty if the examples bring hard negatives.
        expansions: Key of the queries' expansions; empty for the control.
        placement: Where each kind of stage runs.
        store: Folder or s3:// URL that keeps every artifact.
    """
    work = Workspace(store=store, seed=options.seed, device=options.device, placement=placement)
    model = work.find(start)
    train_retriever(
        work,
        work.find(examples),
        work.find(corpus) if corpus else None,
        model,
        model,
        work.find(expansions) if expansions else None,
        options,
        "train the retriever",
    )
    return work.made
