"""Check a language model before any work: architecture, weights, tokenizer, and a first text."""

import inspect
import logging
from pathlib import Path
from typing import Any, cast

from expandr_core.errors import DataError, first_line
from expandr_core.runtime.model_folders import read_config

log = logging.getLogger(__name__)
_UNSHARED = ("recurrent_gemma", "minimax")  # their caches cannot be taken apart by text


def check_llm(folder: Path) -> dict[str, int]:
    """Check that a folder holds a causal language model with tokenizer and chat template, and try it.

    Returns:
        The layers that an adapter can adapt (see `adapters.linear_layers`).

    Raises:
        DataError: with what is wrong and what to do.
    """
    from transformers import AutoTokenizer

    from expandr_core.generation.adapters import linear_layers
    from expandr_core.generation.llm_trial import try_llm
    from expandr_core.runtime.finite import check_finite

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
