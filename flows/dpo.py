"""DPO alone: align a language model with preference pairs."""

from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.artifacts import Artifact
from tasks.dpo import align
from tasks.placement import Placement
from tasks.stage import Workspace

HERE = Placement()


@flow(name="dpo")
def dpo(
    options: JointLoopOptions,
    llm: str,
    pairs: str,
    placement: Placement = HERE,
    store: str = "store",
) -> list[tuple[str, Artifact]]:
    """Train an adapter by DPO and merge it.

    Args:
        options: The options of every stage; `dpo`, `expand` and `seed` matter here.
        llm: Key of a language model.
        pairs: Key of preference pairs.
        placement: Where each kind of stage runs.
        store: Folder or s3:// URL that keeps every artifact.
    """
    work = Workspace(store=store, seed=options.seed, device=options.device, placement=placement)
    align(work, work.find(llm), work.find(pairs), options)
    return work.made
