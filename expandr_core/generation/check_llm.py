"""Check a language model before any work: architecture, weights, tokenizer, and its first texts."""

import inspect
import logging
import math
from pathlib import Path
from typing import Any

from expandr_core.errors import DataError, first_line
from expandr_core.options.generation import SamplingOptions
from expandr_core.runtime.model_folders import read_config
from expandr_core.runtime.weights import check_finite, load_without_weights

log = logging.getLogger(__name__)
_UNSHARED = ("recurrent_gemma", "minimax")  # model types whose caches cannot be repeated per text
NO_LIMIT = 10**6  # tokens
QUERIES = ("What is a wing?", "dust")
TEXT = "A wing moves air down, and the air moves the wing up."


def check_llm(folder: Path) -> dict[str, int]:
    """Check that a folder is a causal language model with tokenizer and chat template, and try it.

    Returns:
        The layers that an adapter can adapt (see `adapters.linear_layers`).

    Raises:
        DataError: with what is wrong and what to do.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from expandr_core.generation.adapters import linear_layers

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
    model = load_without_weights(AutoModelForCausalLM, folder)
    _check_cache(folder, model)
    _check_tokenizer(folder, tokenizer, model)
    check_finite(folder, model)
    try_llm(folder, model, tokenizer)
    return linear_layers(model)


def _check_architecture(folder: Path) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json, so not a language model; correct llm.model")
    config = read_config(folder)
    stated, kind = (config.get("architectures") or ["none"])[0], config.get("model_type")
    loaded = KNOWN.get(str(kind))
    multimodal = "text_config" in config and loaded is not None  # its text model is loaded alone
    if stated not in KNOWN.values() and not (
        multimodal and stated.endswith("ForConditionalGeneration")
    ):
        raise DataError(
            f"{folder}/config.json: {stated} is not a causal language model; "
            "name one such as LlamaForCausalLM in llm.model"
        )
    if stated != loaded and not multimodal:
        raise DataError(
            f"{folder}/config.json: the architecture is {stated}, but for the model_type {kind!r} "
            f"transformers would load {loaded}; get the model's own config.json"
        )


def _check_cache(folder: Path, model: Any) -> None:
    """Check that the texts of a prompt can share its key-value cache."""
    has_cache = "past_key_values" in inspect.signature(model.forward).parameters
    if not has_cache or model.config.model_type in _UNSHARED:
        raise DataError(
            f"{folder}: {type(model).__name__} keeps no keys and values of a prompt, which its texts "
            "share here; name a model with attention, such as Qwen3, or a hybrid one, such as Qwen3-Next"
        )


def _check_tokenizer(folder: Path, tokenizer: Any, model: Any) -> None:
    """Check that the tokenizer is the model's and that the chat template works."""
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
    if unused:  # for example tokens of images, which our prompts do not contain
        log.warning(
            "%s: %d control tokens have no embedding, such as %s; prompts do not contain them",
            *(folder, len(unused), unused[0]),
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        of_model, of_tokenizer = getattr(model.generation_config, name), getattr(tokenizer, name)
        for token in [*(of_model if isinstance(of_model, list) else [of_model]), of_tokenizer]:
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


def try_llm(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write a sampled and a greedy text for each of two prompts, and tokenise a preference pair.

    A model that is quantised, or too large for this machine's memory, writes no text.

    Args:
        folder: the model.
        model: the same, loaded without its weights.
        tokenizer: the model's.

    Raises:
        DataError: if any of this fails.
    """
    from expandr_core.generation.pair_tokens import preference_ids
    from expandr_core.generation.prompts import fit_prompt

    pair = {"query_id": "trial", "query": QUERIES[0]}
    for side in ("chosen", "rejected"):
        pair |= {f"{side}_text": TEXT, f"{side}_finish_reason": "stop"}
    try:
        prompts = [fit_prompt(tokenizer, "q2d", each, "", NO_LIMIT).ids for each in QUERIES]
        preference_ids(tokenizer, pair, "q2d", max_prompt_tokens=NO_LIMIT, max_tokens=NO_LIMIT)
        if _fits_memory(folder, model):
            _write(folder, prompts)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    except Exception as error:
        raise DataError(
            f"{folder}: {type(model).__name__} cannot be used here, as its first text failed "
            f"({type(error).__name__}: {first_line(error)}); name another model"
        ) from error


def _fits_memory(folder: Path, model: Any) -> bool:
    import psutil

    needed = 4 * math.fsum(weight.numel() for weight in model.parameters())  # float32
    free = psutil.virtual_memory().available
    quantised = getattr(model.config, "quantization_config", None) is not None
    fits = not quantised and needed <= 0.8 * free
    if not fits:
        log.warning(
            "%s: not tried on a text; the model takes %.1f GB here%s, of which %.1f are free",
            *(folder, needed / 1e9, ", is quantised" if quantised else "", free / 1e9),
        )
    return fits


def _write(folder: Path, prompts: list[list[int]]) -> None:
    import torch

    from expandr_core.generation.engine import Request
    from expandr_core.generation.transformers_engine import TransformersGenerator

    requests = [Request("q2d", query, "", (0, 1), (1.0, 0.0)) for query in QUERIES]
    generator = TransformersGenerator(folder, "cpu")
    list(generator.generate(requests, SamplingOptions(max_new_tokens=2), max(map(len, prompts))))
    with torch.inference_mode():
        found: Any = generator.model(input_ids=torch.tensor(prompts[:1]), logits_to_keep=1)
    if found.logits.min() == found.logits.max():
        raise DataError(
            "every token is equally likely after a prompt, as in a model whose embeddings or norms are "
            "all zero; get the model again"
        )
