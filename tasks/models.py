"""Get the models that the loop starts from: imported, or built from the collection's text."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from expandr_core.encoders.anchordr_checkpoint import TOKENIZERS, check_published
from expandr_core.errors import DataError, naming
from expandr_core.generation.adapters import check_targets, is_adapter
from expandr_core.generation.chat_templates import chat_options, template_of
from expandr_core.generation.engine import check_trainable
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import RetrieverOptions
from expandr_core.runtime.model_source import adapter_source, file_source, model_source
from expandr_core.stages import import_adapter
from expandr_core.stages.import_model import LAYERS, TOKENIZER, ImportOptions
from expandr_core.stages.tiny_llm import CHAT_TEMPLATE
from expandr_core.stages.tiny_llm import LAYERS as TINY_LAYERS
from expandr_core.store.artifacts import Artifact
from tasks.data import Data, training_texts
from tasks.pipeline import Pipeline

ROLES = frozenset({"llm", "retriever", "reward_encoder"})


@dataclass(frozen=True)
class Models:
    """The language model and the retriever after a round; round 0 is before the first.

    `reward_encoder` rewards in every round, if it is not the retriever of the round. `gate` tells which
    queries are expanded, if it was learned. `distilled` is the retriever whose query encoder needs no
    expansions, if there is one.
    """

    round: int
    llm: Artifact
    retriever: Artifact
    reward_encoder: Artifact | None = None
    gate: Artifact | None = None
    distilled: Artifact | None = None


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
        imported["retriever"] = _import_retriever(
            pipeline, options.retriever, "retriever", "retriever.model"
        )
    if "reward_encoder" in roles and options.preferences.reward_encoder.model != "current":
        imported["reward_encoder"] = _import_retriever(
            pipeline, options.rewarding, "reward encoder", "preferences.reward_encoder"
        )
    if "llm" in roles and llm.model == "tiny":
        chat_options(CHAT_TEMPLATE, llm.template, llm.date)  # so that it says what is wrong
        _adapter_source(llm.adapter)
    elif "llm" in roles:
        with naming("llm.model"):
            folder, sources = model_source(llm.model)
        chat_options(template_of(folder), llm.template, llm.date)
        with naming("llm.model"):
            resolved = ImportOptions(kind="llm", folder=str(folder))
            base = pipeline.step(
                "import_model", {}, "import the LLM", options=resolved, name="llm", sources=sources
            )
        imported["llm"] = with_adapter(pipeline, base)
    return imported


def with_adapter(pipeline: Pipeline, llm: Artifact) -> Artifact:
    """Import the adapter that the options name, for a language model; without one, return the model.

    Raises:
        DataError: if it does not fit.
    """
    adapter = pipeline.options.llm.adapter
    if not adapter:
        return llm
    if is_adapter(llm):
        raise DataError(
            f"llm.adapter: {llm.key} is an adapter itself; leave llm.adapter empty, or give the key "
            "of a whole model"
        )
    folder, sources = _adapter_source(adapter)
    with naming("llm.adapter"):
        return pipeline.step(
            "import_adapter",
            {"llm": llm},
            "import the adapter",
            options=import_adapter.OPTIONS(folder=str(folder)),
            sources=sources,
        )


def _adapter_source(adapter: str) -> tuple[Path, dict[str, str]]:
    """Find the files of an adapter, if one is named."""
    with naming("llm.adapter"):
        return adapter_source(adapter) if adapter else (Path(), {})


def _import_retriever(
    pipeline: Pipeline, retriever: RetrieverOptions, name: str, option: str
) -> Artifact:
    tokenizer = None
    with naming(option):
        folder, sources = model_source(retriever.model, retriever.allow_pickle_conversion)
    if retriever.tokenizer:
        with naming("retriever.tokenizer"):
            tokenizer, sources[TOKENIZER] = file_source(retriever.tokenizer, TOKENIZERS)
            check_published(retriever.tokenizer, tokenizer, sources[TOKENIZER])
    resolved = ImportOptions.of(retriever, folder, tokenizer)
    with naming(option):
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
    """Train a tiny LLM on the collection's text; put the adapter on it that the options may name."""
    inputs, options = {"texts": training_texts(pipeline, data, "llm")}, pipeline.options.llm.tiny
    llm = pipeline.step("tiny_llm", inputs, "train the tiny LLM", options=options)
    return with_adapter(pipeline, llm)


def build_retriever(pipeline: Pipeline, data: Data) -> Artifact:
    """Train a tiny retriever on crops of the corpus."""
    inputs = {"corpus": data.corpus, "texts": training_texts(pipeline, data, "retriever")}
    options = pipeline.options.retriever.tiny
    return pipeline.step("tiny_retriever", inputs, "train the tiny retriever", options=options)
