"""Load a retriever exactly as its folder says it is used; for training as for everything else."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expandr_core.errors import DataError
from expandr_core.options.retriever import EncodingOptions
from expandr_core.runtime.device import run_device
from expandr_core.runtime.model_folders import ANCHORDR, SENTENCE_CONFIG, routed

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def load_retriever(folder: Path, device: str, encoding: EncodingOptions) -> "SentenceTransformer":
    """Load a sentence-transformers model from a local folder, in float32.

    Args:
        folder: as `SentenceTransformer.save` wrote it, with safetensors weights.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        encoding: texts are cut at its `max_tokens`, or at the model's own limit if that is smaller.

    Raises:
        DataError: if the folder is no such model, or we could not use it faithfully.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # otherwise every model loaded draws a bar
    if not (folder / "modules.json").exists() or not any(folder.rglob("*.safetensors")):
        raise DataError(
            f"{folder}: not a sentence-transformers model with safetensors weights "
            "(modules.json, *.safetensors); save one with SentenceTransformer.save"
        )
    device = run_device(device)
    try:
        model = load_sentence_model(folder, device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(f"{folder}: the retriever cannot be loaded: {error}") from error
    if model.default_prompt_name is not None:
        raise DataError(
            f"{folder}: the retriever prepends its prompt {model.default_prompt_name!r} to all texts, "
            "which training would not; remove default_prompt_name from its configuration"
        )
    limit_texts(model, encoding.max_tokens)
    return model.float().eval()


def load_sentence_model(folder: Path, device: str) -> "SentenceTransformer":
    """Load a sentence-transformers model, without running code of the folder.

    It may be AnchorDR, or a router to two of them.

    AnchorDR needs a way of its own: sentence-transformers imports classes of other packages only if
    it may also run any code that a folder brings.

    Args:
        folder: with modules.json.
        device: "cpu" or "cuda".

    Raises:
        DataError: if AnchorDR's weights are incomplete.
        ValueError: and others, from sentence-transformers.
    """
    from sentence_transformers import SentenceTransformer

    modules = json.loads((folder / "modules.json").read_bytes())
    inner = [module["type"] for module in routed(folder, modules[0]["path"])]
    if ANCHORDR not in [*inner, *(module["type"] for module in modules)]:
        return SentenceTransformer(
            str(folder), device=device, local_files_only=True, trust_remote_code=False
        )
    from sentence_transformers.base.modules import Router

    from expandr_core.anchordr.model import AnchorDR

    config = json.loads((folder / SENTENCE_CONFIG).read_bytes())
    classes = {ANCHORDR: AnchorDR}
    only = Router.load(str(folder), module_classes=classes) if inner else AnchorDR.load(str(folder))
    return SentenceTransformer(
        modules=[only],
        device=device,
        prompts=config["prompts"],
        default_prompt_name=config["default_prompt_name"],
        similarity_fn_name=config["similarity_fn_name"],
        truncate_dim=config.get("truncate_dim"),
    )


def limit_texts(model: "SentenceTransformer", max_tokens: int) -> None:
    """Let a model cut texts at `max_tokens`, in each of its encoders, unless their limit is smaller."""
    from sentence_transformers.base.modules import Router
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    first: Any = model[0]
    encoders: list[Any] = [first]
    if isinstance(first, Router):
        encoders = [modules[0] for modules in first.sub_modules.values()]  # pyrefly: ignore[bad-index]
    for encoder in encoders:
        if isinstance(encoder, StaticEmbedding):  # only its tokenizer can have a limit
            truncation = encoder.tokenizer.truncation
            limit = truncation["max_length"] if truncation else max_tokens
            encoder.tokenizer.enable_truncation(min(limit, max_tokens))
        else:
            limit = getattr(encoder, "max_seq_length", None) or max_tokens
            encoder.max_seq_length = min(limit, max_tokens)


def normalizes(model: "SentenceTransformer", encoding: EncodingOptions) -> bool:
    """Tell whether to scale vectors to length 1, which makes inner products cosines.

    Raises:
        DataError: if the model compares vectors by something that exact search cannot compute.
    """
    similarity = encoding.similarity
    if similarity == "model":
        similarity = model.similarity_fn_name
    if similarity not in ("cosine", "dot"):
        raise DataError(
            f"the retriever compares vectors by {similarity!r}; set retriever.encoding.similarity "
            "to 'cosine' or 'dot'"
        )
    return similarity == "cosine"
