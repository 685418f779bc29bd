"""Preferences alone: reward candidates, choose pairs, and audit them."""

from prefect import flow

from expandr_core.options.loop import JointLoopOptions
from expandr_core.store.run_records import Step
from tasks.pipeline import Pipeline
from tasks.placement import Placement
from tasks.preferences import audit_pairs, choose_pairs, reward

HERE = Placement()


@flow(name="preferences")
def preferences(
    options: JointLoopOptions,
    candidates: str,
    answers: str,
    examples: str,
    retriever: str,
    placement: Placement = HERE,
    store: str = "store",
) -> list[Step]:
    """Reward candidates by a retriever, choose preference pairs, and audit them.

    Args:
        options: The options of every stage; `preferences`, `retriever` and `seed` matter here.
        candidates: Key of what `expand` wrote as candidates.
        answers: Key of what `expand` wrote as answers, for the same queries.
        examples: Key and file of these queries, such as prepare-1f3a/preference.parquet.
        retriever: Key of a retriever.
        placement: Where each kind of stage runs.
        store: Folder or s3:// URL that keeps every artifact.
    """
    pipeline = Pipeline(store, options, placement)
    found = [pipeline.find(key) for key in (candidates, answers, examples, retriever)]
    rewards = reward(pipeline, *found)
    audit_pairs(pipeline, rewards, choose_pairs(pipeline, rewards))
    return list(pipeline.steps)
