"""Check that an adapter from elsewhere is a LoRA that fits a language model, without loading the model.

Only plain LoRA is taken, since its sum with what DPO trains is a LoRA again (`adapters.add`), and every
engine applies it alike. `base_model_name_or_path` says where the model lay on its authors' machine, so
it is not followed.
"""

import logging
import re
from math import isfinite
from pathlib import Path
from typing import Any

from expandr_core.errors import DataError, first_line
from expandr_core.generation.adapters import CONFIG, WEIGHTS, linear_layers, without_numbers
from expandr_core.runtime.model_folders import read_json_object
from expandr_core.runtime.weights import load_without_weights

log = logging.getLogger(__name__)
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
TOKENIZER += ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_ALLOWED = {  # settings that change nothing of an adapter that has been trained, by their values
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # others change the model
    "bias": ("none",),
}
_ANY = {"r", "lora_alpha", "target_modules", "lora_dropout", "fan_in_fan_out", "inference_mode"}
_ANY |= {"base_model_name_or_path", "revision", "auto_mapping", "peft_version", "megatron_core"}
_ANY |= {"qalora_group_size", "runtime_config"}
_MERGE = (
    "merge it into its base model (PEFT's merge_and_unload, then save_pretrained), and name that "
    "folder in llm.model"
)
_OTHER_BASE = "name the adapter's own base model in llm.model"
_TEXTS = ("Please write a passage.", "Wings lift 12 kg;  «é» 날개\n\tx = 'a_b'")


def check_adapter(folder: Path, llm: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Check settings, layers, shapes and numbers of an adapter, and its tokenizer if it brings one.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        llm: the model that it adapts; only the shapes of its weights are read.

    Returns:
        The configuration that `write_config` completes, and the model's layers (see `linear_layers`).

    Raises:
        DataError: with what is wrong and what to do.
    """
    from transformers import AutoModelForCausalLM

    config = read_json_object(folder / CONFIG)
    _check_settings(folder / CONFIG, config)
    _check_tokenizer(folder, llm)
    model = load_without_weights(AutoModelForCausalLM, llm)
    layers = linear_layers(model)
    kept = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": config["r"],
        "lora_alpha": config["lora_alpha"],
        "target_modules": config["target_modules"],
        "fan_in_fan_out": bool(config.get("fan_in_fan_out")),
        "bias": "none",
        "inference_mode": True,
    }
    kept["target_modules"] = _check_layers(folder, model, kept, layers)
    return kept, dict(layers)


def _check_settings(path: Path, config: dict[str, Any]) -> None:
    """Refuse what is more than plain LoRA, including settings unknown here that are switched on."""
    for name, value in sorted(config.items()):
        if value not in _ALLOWED[name] if name in _ALLOWED else name not in _ANY and value:
            raise DataError(f"{path}: {name} is {value!r}, so this is not plain LoRA; {_MERGE}")
    if config.get("peft_type") != "LORA":
        raise DataError(f"{path}: no peft_type, so not an adapter of PEFT; correct llm.adapter")
    rank, alpha, targets = (config.get(name) for name in ("r", "lora_alpha", "target_modules"))
    numbers = (
        type(rank) is int
        and isinstance(alpha, int | float)
        and isfinite(alpha)
        and min(rank, alpha) > 0
    )
    names = targets if isinstance(targets, list) else [targets]
    if not numbers or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(
            f"{path}: r is {rank!r}, lora_alpha {alpha!r} and target_modules {targets!r}, but rank and "
            "alpha must be positive numbers, and the layers named; get the file again"
        )


def _check_layers(
    folder: Path, model: Any, config: dict[str, Any], layers: dict[str, int]
) -> list[str]:
    """Check the tensors against those that PEFT makes for the model; name the adapted layers."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    try:
        adapted: Any = get_peft_model(model, LoraConfig(**config), low_cpu_mem_usage=True)
    except (ValueError, re.error) as error:
        raise DataError(f"{folder / CONFIG}: {first_line(error)}; {_OTHER_BASE}") from error
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    shapes = {name: tuple(weight.shape) for name, weight in expected.items()}
    try:
        with safe_open(folder / WEIGHTS, "pt") as weights:
            found = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
            _compare(folder, config["r"], shapes, found)
            _check_numbers(folder / WEIGHTS, weights)
    except SafetensorError as error:
        raise DataError(f"{folder / WEIGHTS}: damaged ({error}); get the file again") from error
    return _names(folder, adapted.targeted_module_names, config["target_modules"], layers)


def _compare(
    folder: Path, rank: int, expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]
) -> None:
    path = folder / WEIGHTS
    ranks = {
        shape[0] for name, shape in found.items() if name.endswith("lora_A.weight") and shape
    } - {rank}
    if ranks:
        raise DataError(
            f"{path}: rank {ranks.pop()}, but {CONFIG} says r {rank}; get both files again"
        )
    foreign = sorted(found.keys() - expected.keys())
    if foreign:
        others = [name for name in foreign if "lora_" not in name]
        raise DataError(
            f"{path}: {len(foreign)} tensors do not belong to the language model's adapted layers, such "
            f"as {(others or foreign)[0]}; "
            + (f"this is more than LoRA: {_MERGE}" if others else _OTHER_BASE)
        )
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise DataError(
            f"{path}: {len(missing)} tensors are missing, such as {missing[0]}; {_OTHER_BASE}, or get "
            "the file again"
        )
    for name, shape in sorted(expected.items()):
        if found[name] != shape:
            raise DataError(
                f"{path}: {name} is {found[name]}, but {shape} in this language model; {_OTHER_BASE}"
            )


def _check_numbers(path: Path, weights: Any) -> None:
    changes = False
    for name in sorted(weights.keys()):
        matrix = weights.get_tensor(name)
        if not matrix.is_floating_point() or not matrix.isfinite().all():
            raise DataError(
                f"{path}: {name} has numbers that are not finite, or no floats; the weights are damaged "
                "or diverged in training, so get the adapter again"
            )
        changes = changes or ("lora_B" in name and bool(matrix.any()))
    if not changes:
        log.warning("%s: every lora_B is zero, so the adapter changes nothing", path)


def _names(
    folder: Path, adapted: list[str], targets: list[str] | str, layers: dict[str, int]
) -> list[str]:
    """Return names that PEFT and vLLM find exactly the adapted layers by."""
    foreign = sorted({name for name in adapted if without_numbers(name) not in layers})
    if foreign:
        raise DataError(
            f"{folder / CONFIG}: {foreign[0]} is adapted, which is no linear layer with weights of its "
            f"own; {_MERGE}"
        )
    if isinstance(targets, str):  # a pattern
        return sorted(adapted)
    return sorted(
        name for name in targets if any(f".{each}".endswith(f".{name}") for each in adapted)
    )


def _check_tokenizer(folder: Path, llm: Path) -> None:
    """Check that the adapter's tokenizer, if it brings one, is the language model's."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZER):
        return
    try:
        both: list[Any] = [
            AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            for path in (folder, llm)
        ]
    except Exception as error:
        raise DataError(
            f"{folder}: the tokenizer does not load ({first_line(error)}); remove its files to use the "
            "language model's"
        ) from error
    own, base = both
    different = sorted({token for token, _ in own.get_vocab().items() ^ base.get_vocab().items()})
    what = f"token {different[0]!r} has another id" if different else ""
    if not what and any(own(text).input_ids != base(text).input_ids for text in _TEXTS):
        what = "texts get other ids"
    if not what and own.chat_template and own.get_chat_template() != base.get_chat_template():
        what = "the chat template is another"
    if what:
        raise DataError(
            f"{folder}: {what} than in the language model's tokenizer, so the adapter was trained on "
            "other prompts than it would get here; name its own base model in llm.model, or remove the "
            "adapter's tokenizer files if you know that they do not matter"
        )
