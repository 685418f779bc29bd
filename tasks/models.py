"""Get the models that the loop starts from: imported, or built from the collection's text."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from expandr_core.errors import naming
from expandr_core.generation.adapters import check_targets
from expandr_core.generation.chat_templates import chat_options, template_of
from expandr_core.generation.engine import check_trainable
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import RetrieverOptions
from expandr_core.runtime.model_source import model_source
from expandr_core.stages.import_model import LAYERS, ImportOptions
from expandr_core.stages.tiny_llm import CHAT_TEMPLATE
from expandr_core.stages.tiny_llm import LAYERS as TINY_LAYERS
from expandr_core.store.artifacts import Artifact
from tasks.data import Data, training_texts
from tasks.pipeline import Pipeline

ROLES = frozenset({"llm", "retriever", "reward_encoder"})


@dataclass(frozen=True)
class Models:
    """The language model and the retriever after a round; round 0 is before the first.

    `reward_encoder` rewards in every round, if it is not the retriever of the round.
    """

    round: int
    llm: Artifact
    retriever: Artifact
    reward_encoder: Artifact | None = None


def import_models(pipeline: Pipeline, roles: Set[str] = ROLES) -> dict[str, Artifact]:
    """Check and import the models that are named; the first step, so that it costs nothing to fail.

    Returns:
        By role, "llm", "retriever" and "reward_encoder"; what is to be built, or not asked for, is
        absent.

    Raises:
        DataError: if a model cannot be used, or the LLM is to be run where it cannot be changed.
    """
    options = pipeline.options
    check_trainable(options.llm.settings)
    imported, llm = {}, options.llm
    if "retriever" in roles and options.retriever.model != "tiny":
        with naming("retriever.model"):
            imported["retriever"] = _import_retriever(pipeline, options.retriever, "retriever")
    if "reward_encoder" in roles and options.rewarding != options.retriever:
        with naming("preferences.reward_encoder"):
            encoder = _import_retriever(pipeline, options.rewarding, "reward encoder")
            imported["reward_encoder"] = encoder
    if "llm" in roles and llm.model == "tiny":
        chat_options(CHAT_TEMPLATE, llm.template, llm.date)  # so that it says what is wrong
    elif "llm" in roles:
        with naming("llm.model"):
            folder, sources = model_source(llm.model)
        chat_options(template_of(folder), llm.template, llm.date)
        with naming("llm.model"):
            resolved = ImportOptions(kind="llm", folder=str(folder))
            imported["llm"] = pipeline.step(
                "import_model", {}, "import the LLM", options=resolved, name="llm", sources=sources
            )
    return imported


def _import_retriever(pipeline: Pipeline, retriever: RetrieverOptions, name: str) -> Artifact:
    folder, sources = model_source(retriever.model)
    resolved = ImportOptions.of(retriever, folder)
    return pipeline.step(
        "import_model",
        {},
        f"import the {name}",
        options=resolved,
        name=name,
        sources=sources,
    )


def check_adapter(imported: Mapping[str, Artifact], options: JointLoopOptions) -> None:
    """Check that the language model has the layers that DPO is to adapt, before it has written a text.

    Raises:
        DataError: if it lacks one.
    """
    if options.loop.order == "retriever_only":
        return
    layers: Iterable[str] = TINY_LAYERS
    if "llm" in imported:
        counts = imported["llm"].counts
        layers = [name.removeprefix(LAYERS) for name in counts if name.startswith(LAYERS)]
    if layers:  # an import of before tells none; DPO checks it itself
        check_targets(layers, options.dpo.lora.targets)


def build_llm(pipeline: Pipeline, data: Data) -> Artifact:
    """Train a tiny LLM on the collection's text."""
    inputs, options = {"texts": training_texts(pipeline, data, "llm")}, pipeline.options.llm.tiny
    return pipeline.step("tiny_llm", inputs, "train the tiny LLM", options=options)


def build_retriever(pipeline: Pipeline, data: Data) -> Artifact:
    """Train a tiny retriever on crops of the corpus."""
    inputs = {"corpus": data.corpus, "texts": training_texts(pipeline, data, "retriever")}
    options = pipeline.options.retriever.tiny
    return pipeline.step("tiny_retriever", inputs, "train the tiny retriever", options=options)
