"""Prepare alone: make or read the data, and split it."""

from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from tasks.data import prepare_data
from tasks.placement import Placement
from tasks.stage import Workspace

HERE = Placement()


@flow(name="prepare")
def prepare(
    options: JointLoopOptions, placement: Placement = HERE, store: str = "store"
) -> list[tuple[str, Artifact]]:
    """Make or read the data and split the training queries.

    Args:
        options: The options of every stage; `data`, `world` and `seed` matter here.
        placement: Where each kind of stage runs.
        store: Folder or s3:// URL that keeps every artifact.
    """
    work = Workspace(store=store, seed=options.seed, device=options.device, placement=placement)
    prepare_data(work, options.data, options.world)
    return work.made
