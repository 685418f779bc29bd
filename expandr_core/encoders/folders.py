"""Models from elsewhere: found, and tried before any work (`model_folder` has what files tell)."""

import inspect
import logging
import re
from pathlib import Path
from typing import Any, Literal, cast

from expandr_core.errors import DataError
from expandr_core.runtime.model_folders import LEFT_OUT, check_folder, model_files, read_config
from expandr_core.store.store import sha256_of

log = logging.getLogger(__name__)
Similarity = Literal["model", "cosine", "dot"]
_UNSHARED = ("recurrent_gemma", "minimax")  # their caches cannot be taken apart by text
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def model_source(model: str) -> tuple[Path, dict[str, str]]:
    """Return the local folder of a model, and the SHA-256 of each file that belongs to it.

    Args:
        model: a folder, or the name of a model on the Hugging Face hub, which is downloaded.

    Raises:
        DataError: if it is neither, or cannot be used whatever it is for (see `check_folder`).
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _download(model)
    folder = folder.absolute()
    check_folder(folder)
    return folder, {name: sha256_of(folder / name) for name in model_files(folder)}


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if not _HUB_NAME.fullmatch(model):
        raise DataError(f"{model}: no such folder, and not a name on the hub; correct the model")
    try:
        folder = snapshot_download(
            model,
            ignore_patterns=[f"*{suffix}" for suffix in sorted(LEFT_OUT)]
            + ["consolidated*", "original/*", "onnx/*", "openvino/*"],
        )
    except GatedRepoError as error:
        raise DataError(
            f"{model}: the hub gives it only to those who accepted its terms; accept them on its "
            "page, log in with `hf auth login`, or name a local folder"
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(f"{model}: neither a folder here nor a model on the hub") from error
    except OSError as error:
        raise DataError(
            f"{model}: no folder here, not downloaded before, and not to be had from the hub now "
            f"({first_line(error)}); connect to the network, or name a local folder"
        ) from error
    return Path(folder)


def check_llm(folder: Path) -> dict[str, int]:
    """Check that a folder holds a causal language model with tokenizer and chat template, and try it.

    Returns:
        The layers that an adapter can adapt (see `adapters.linear_layers`).

    Raises:
        DataError: with what is wrong and what to do.
    """
    from transformers import AutoTokenizer

    from expandr_core.generation.adapters import linear_layers
    from expandr_core.runtime.finite import check_finite
    from expandr_core.training.llm_trial import try_llm

    _check_architecture(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise DataError(
            f"{folder}: the tokenizer does not load ({first_line(error)}); "
            "add the model's own tokenizer.json and tokenizer_config.json"
        ) from error
    model = _without_weights(folder)
    _check_tokenizer(folder, tokenizer, model)
    check_finite(folder, model)
    try_llm(folder, model)
    return linear_layers(model)


def _check_architecture(folder: Path) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json, so not a language model; correct llm.model")
    config = read_config(folder)
    written, kind = (config.get("architectures") or ["none"])[0], config.get("model_type")
    loaded = KNOWN.get(str(kind))
    part = "text_config" in config and loaded is not None  # of a model of images and texts
    if written not in KNOWN.values() and not (
        part and written.endswith("ForConditionalGeneration")
    ):
        raise DataError(
            f"{folder}/config.json: {written} is not a causal language model; "
            "name one such as LlamaForCausalLM in llm.model"
        )
    if written != loaded and not part:
        raise DataError(
            f"{folder}/config.json: the architecture is {written}, in whose place transformers would "
            f"take {loaded}, for the model_type {kind!r}; get the model's own config.json"
        )


def _without_weights(folder: Path) -> Any:
    """Load a model from the headers of its weights alone; check that they are its own."""
    from transformers import AutoModelForCausalLM

    try:
        model, loaded = cast(
            tuple[Any, dict[str, Any]],
            AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                device_map="meta",
                output_loading_info=True,
            ),
        )
    except Exception as error:
        raise DataError(f"{folder}: the model does not load ({first_line(error)})") from error
    modules = {name for name, _ in model.named_modules() if name}
    loaded["unexpected_keys"] = [
        name for name in loaded["unexpected_keys"] if name.rpartition(".")[0] in modules
    ]
    for fault in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if loaded[fault]:
            raise DataError(
                f"{folder}: the weights do not fit config.json ({fault.replace('_', ' ')}: "
                f"{sorted(map(str, loaded[fault]))[0]}, ...); get the model again"
            )
    kept = "past_key_values" in inspect.signature(model.forward).parameters
    if not kept or model.config.model_type in _UNSHARED:
        raise DataError(
            f"{folder}: {type(model).__name__} keeps no keys and values of a prompt, which its texts "
            "share here; name a model with attention, such as Qwen3, or a hybrid one, such as Qwen3-Next"
        )
    return model


def _check_tokenizer(folder: Path, tokenizer: Any, model: Any) -> None:
    """Check that the tokenizer is the model's, and that the chat template works."""
    from expandr_core.generation.control_tokens import control_tokens
    from expandr_core.generation.prompts import prompt_ids, turn_end_id

    rows = model.get_input_embeddings().weight.shape[0]
    remedy = "use the tokenizer the model was trained with"
    beyond = sorted(
        (number, token) for token, number in tokenizer.get_vocab().items() if number >= rows
    )
    control = control_tokens(tokenizer)
    unused = [token for number, token in beyond if number in control]
    if not tokenizer.get_vocab() or len(unused) < len(beyond):
        raise DataError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings; "
            f"{remedy}"
        )
    if unused:  # of images, say: no text has them, and no prompt may
        log.warning(
            "%s: %d control tokens have no embedding, such as %s; no prompt has them",
            *(folder, len(unused), unused[0]),
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(model.generation_config, name)
        own = getattr(tokenizer, name)
        for token in [*(value if isinstance(value, list) else [value]), own]:
            if token is not None and not 0 <= token < rows:
                raise DataError(
                    f"{folder}: {name} is {token}, but there are {rows} tokens; {remedy}"
                )
    try:
        ids = prompt_ids(tokenizer, "What is a wing?")
        turn_end_id(tokenizer)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{folder}: the chat template fails for a single user turn ({first_line(error)}); "
            "correct chat_template.jinja"
        ) from error
    if max(ids) >= rows:
        raise DataError(f"{folder}: the chat template uses token {max(ids)} of {rows}; {remedy}")


def check_retriever(folder: Path, similarity: Similarity = "model") -> None:
    """Check that a folder works as a retriever; see `retriever_check`.

    Args:
        folder: a model of sentence-transformers.
        similarity: see `EncodingOptions`.

    Raises:
        DataError: with what is wrong and what to do.
    """
    from expandr_core.encoders.check import check
    from expandr_core.options import EncodingOptions

    check(folder, EncodingOptions(similarity=similarity))


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or else its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
