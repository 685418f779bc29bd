"""Get the models that the loop starts from: built from the collection's text, or imported."""

from expandr_core import models
from expandr_core.artifacts import Artifact
from expandr_core.options import LLMOptions, RetrieverOptions
from expandr_core.stages.import_model import ImportOptions
from tasks.data import Data, training_texts
from tasks.stage import Workspace


def get_llm(work: Workspace, data: Data, options: LLMOptions) -> Artifact:
    """Build the tiny LLM, or check and import the one that is named."""
    if options.model != "tiny":
        return _import(work, "llm", options.model)
    texts = training_texts(work, data)
    return work.make("train the tiny LLM", "tiny_llm", options.tiny, {"texts": texts})


def get_retriever(work: Workspace, data: Data, options: RetrieverOptions) -> Artifact:
    """Build the tiny retriever, or check and import the one that is named."""
    if options.model != "tiny":
        return _import(work, "retriever", options.model)
    inputs = {"corpus": data.corpus, "texts": training_texts(work, data)}
    return work.make("train the tiny retriever", "tiny_retriever", options.tiny, inputs)


def _import(work: Workspace, kind: str, model: str) -> Artifact:
    folder, sources = models.model_source(model)
    options = ImportOptions(kind=kind, folder=str(folder))  # pyright: ignore[reportArgumentType]
    return work.make(f"import the {kind}", "import_model", options, sources=sources)
