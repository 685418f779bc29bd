"""Get the models that the loop starts from: imported, or built from the collection's text."""

from expandr_core import models
from expandr_core.artifacts import Artifact
from expandr_core.errors import DataError
from expandr_core.options import JointLoopOptions
from expandr_core.stages.import_model import ImportOptions
from tasks.data import Data, training_texts
from tasks.stage import Workspace


def import_models(work: Workspace, options: JointLoopOptions) -> dict[str, Artifact]:
    """Check and import the models that are named; the first step, so that it costs nothing to fail.

    Returns:
        By role, "llm" and "retriever"; what is to be built is absent.

    Raises:
        DataError: if a model cannot be used, or the LLM is to be run where it cannot be changed.
    """
    if options.llm.engine == "endpoint":
        raise DataError(
            "llm.engine is 'endpoint', but a server keeps its model and the loop trains it; use "
            "'vllm' or 'transformers' here, and an endpoint with the flow expand alone"
        )
    named = {"retriever": options.retriever.model, "llm": options.llm.model}
    imported = {}
    for kind, model in named.items():
        if model != "tiny":
            folder, sources = models.model_source(model)
            resolved = ImportOptions(kind=kind, folder=str(folder))  # pyright: ignore[reportArgumentType]
            title = f"import the {'LLM' if kind == 'llm' else kind}"
            imported[kind] = work.make(title, "import_model", resolved, sources=sources)
    return imported


def build_llm(work: Workspace, data: Data, options: JointLoopOptions) -> Artifact:
    """Train a tiny LLM on the collection's text."""
    inputs = {"texts": training_texts(work, data)}
    return work.make("train the tiny LLM", "tiny_llm", options.llm.tiny, inputs)


def build_retriever(work: Workspace, data: Data, options: JointLoopOptions) -> Artifact:
    """Train a tiny retriever on crops of the corpus."""
    inputs = {"corpus": data.corpus, "texts": training_texts(work, data)}
    return work.make("train the tiny retriever", "tiny_retriever", options.retriever.tiny, inputs)
