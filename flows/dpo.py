"""DPO alone: align a language model with preference pairs."""

from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.run_records import Step
from tasks.dpo import align
from tasks.pipeline import Pipeline
from tasks.placement import Placement

HERE = Placement()


@flow(name="dpo")
def dpo(
    options: JointLoopOptions,
    llm: str,
    pairs: str,
    placement: Placement = HERE,
    store: str = "store",
) -> list[Step]:
    """Train an adapter by DPO and merge it.

    Args:
        options: The options of every stage; `dpo`, `expand` and `seed` matter here.
        llm: Key of a language model.
        pairs: Key of preference pairs.
        placement: Where each kind of stage runs.
        store: Folder or s3:// URL that keeps every artifact.
    """
    pipeline = Pipeline(store, options, placement)
    align(pipeline, pipeline.find(llm), pipeline.find(pairs))
    return list(pipeline.steps)
