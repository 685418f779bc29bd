"""Prepare alone: make or read the data, and split it."""

from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.run_records import Step
from tasks.data import prepare_data
from tasks.pipeline import Pipeline
from tasks.placement import Placement

HERE = Placement()


@flow(name="prepare")
def prepare(
    options: JointLoopOptions, placement: Placement = HERE, store: str = "store"
) -> list[Step]:
    """Make or read the data and split the training queries.

    Args:
        options: The options of every stage; `data`, `world` and `seed` matter here.
        placement: Where each kind of stage runs.
        store: Folder or s3:// URL that keeps every artifact.
    """
    pipeline = Pipeline(store, options, placement)
    prepare_data(pipeline)
    return list(pipeline.steps)
