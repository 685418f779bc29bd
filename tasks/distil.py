"""Distil the kept models into a query encoder that needs no language model."""

from expandr_core.stages import distil as stage
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from tasks.expand import write_expansions
from tasks.pipeline import Pipeline


def distil(
    pipeline: Pipeline,
    examples: Artifact,
    unlabelled: Artifact | None,
    llm: Artifact,
    retriever: Artifact,
) -> Artifact:
    """Let the language model expand the queries, and a student imitate the expanded ones.

    Args:
        pipeline: of the run.
        examples: training queries with positives.
        unlabelled: queries without judgements, or None.
        llm: expands both.
        retriever: the student starts from it. The hard negatives are those that it was trained on.
    """
    options = stage.OPTIONS.of(pipeline.options)

    def expanded(queries: Artifact, which: str) -> Artifact:
        title = f"expand the {which} queries, to distil them"
        return write_expansions(pipeline, queries, llm, title, f"distil/{which}", options.samples)

    inputs: dict[str, Artifact | None] = {
        "retriever": retriever,
        "examples": examples,
        "negatives": pipeline.ask(lambda store: _negatives(store, retriever), predicted=None),
        "expansions": expanded(examples, "training"),
    }
    if unlabelled:
        inputs["unlabelled"] = unlabelled
        inputs["unlabelled_expansions"] = expanded(unlabelled, "unlabelled")
    return pipeline.step("distil", inputs, "distil the query encoder", options=options)


def _negatives(store: Store, retriever: Artifact) -> Artifact | None:
    """Return the mined negatives that a retriever was trained on, if there are any."""
    made_from = store.manifest(retriever.key).get("inputs", {})
    return Artifact(**made_from["negatives"]) if "negatives" in made_from else None
