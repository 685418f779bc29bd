"""Retriever alone: train it on queries and their expansions."""

from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.run_records import Step
from tasks.pipeline import Pipeline
from tasks.placement import Placement
from tasks.retriever import train_retriever

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
) -> list[Step]:
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
    pipeline = Pipeline(store, options, placement)
    model = pipeline.find(start)
    train_retriever(
        pipeline,
        pipeline.find(examples),
        pipeline.find(corpus) if corpus else None,
        pipeline.find(expansions) if expansions else None,
        model,
        model,
    )
    return list(pipeline.steps)
