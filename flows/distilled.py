"""The distilled query encoder of the kept models, measured beside these."""

from expandr_core.evaluation.verdict import Kept
from expandr_core.store.artifacts import Artifact
from tasks.comparison import Comparison
from tasks.data import Data
from tasks.distil import distil
from tasks.models import Models
from tasks.pipeline import Pipeline

DISTILLED = "distilled"


def distil_kept(pipeline: Pipeline, data: Data, best: Models) -> Artifact:
    """Distil the models that are kept."""
    view = pipeline.round(best.round)
    return distil(view, data.retriever, data.unlabelled, best.llm, best.retriever)


def measure_distilled(
    pipeline: Pipeline,
    systems: Comparison,
    retriever: Artifact,
    student: Artifact,
    kept: Kept,
    training: tuple[Artifact, ...],
) -> Kept:
    """Measure the student without the LLM, on the retriever's own vectors of the passages; audit it."""
    for (key, encoded_by, encoding), vectors in list(systems.vectors.items()):
        if encoded_by == retriever.key:
            systems.vectors[key, student.key, encoding] = vectors
    systems.dense(pipeline, DISTILLED, "distilled, no LLM", student)
    question = "Is the distilled query encoder better than the query alone?"
    systems.ask(kept.alone, DISTILLED, question, baseline=True)
    question = "Is the query with its expansion better than the distilled query encoder?"
    systems.ask(DISTILLED, kept.expanded, question)
    systems.audit(pipeline, "query", DISTILLED, None, training)
    return kept.model_copy(update={"distilled": DISTILLED})
