"""Rewrite a saved sentence-transformers model so that version 5 opens it too.

Version 6 has other class names and configurations, but also reads those of version 5. So the older form
is written wherever it can express the same. It also states the longest text.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from expandr_core.runtime.model_folders import ROUTER, routed

OLD, NEW = "sentence_transformers.models", "sentence_transformers."
_UNLIMITED = 10**9  # tokenizers without a limit say 1e30
_TEXT_ONLY = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_POOLING = {  # in the order in which version 5 concatenates the vectors of several modes
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_DENSE = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "use_residual": False,
}


def make_portable(folder: Path) -> None:
    """Rewrite the configuration of a folder that `SentenceTransformer.save` wrote."""
    for name, part in list(saved_modules(folder)):
        match name:
            case "Transformer":
                _edit(part / "sentence_bert_config.json", lambda config, at=part: _text(config, at))
            case "Pooling":
                _edit(part / "config.json", old_pooling)
            case "Dense":
                _edit(part / "config.json", _dense)
            case "Router":
                _edit(part / ROUTER, _router)
    modules = json.loads((folder / "modules.json").read_bytes())
    renamed = [module | {"type": _renamed(module["type"])} for module in modules]
    (folder / "modules.json").write_text(json.dumps(renamed, indent=2))


def saved_modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield class name and folder of each module; those of a router's routes follow the router."""
    for module in json.loads((folder / "modules.json").read_bytes()):
        for each in (module, *routed(folder, module["path"])):
            yield each["type"].rpartition(".")[2], folder / each["path"]


def _renamed(kind: str) -> str:
    return f"{OLD}.{kind.rpartition('.')[2]}" if kind.startswith(NEW) else kind


def _edit(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    if path.is_file():
        config = json.loads(path.read_bytes())
        path.write_text(json.dumps(change(config), indent=2))


def _text(config: dict[str, Any], part: Path) -> dict[str, Any]:
    """Write a text encoder's configuration as version 5 does, with the tokenizer's limit."""
    if config != _TEXT_ONLY:
        return config
    limit = json.loads((part / "tokenizer_config.json").read_bytes()).get("model_max_length")
    limits = {"max_seq_length": limit} if limit and limit < _UNLIMITED else {}
    return limits | {"do_lower_case": False}  # lowercasing, if any, is in tokenizer.json


def old_pooling(config: dict[str, Any]) -> dict[str, Any]:
    """Write a pooling's configuration as version 5 does.

    >>> new = {"embedding_dimension": 8, "pooling_mode": "cls", "include_prompt": True}
    >>> [name for name, value in old_pooling(new).items() if value is True]
    ['pooling_mode_cls_token', 'include_prompt']
    """
    modes = config.get("pooling_mode")
    modes = [modes] if isinstance(modes, str) else modes
    if modes is None or modes != [mode for mode in _POOLING if mode in modes]:
        return config
    flags = {flag: mode in modes for mode, flag in _POOLING.items()}
    dimension = {"word_embedding_dimension": config["embedding_dimension"]}
    return dimension | flags | {"include_prompt": config["include_prompt"]}


def _dense(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in config.items() if name not in _DENSE or value != _DENSE[name]
    }


def _router(config: dict[str, Any]) -> dict[str, Any]:
    types = {name: _renamed(kind) for name, kind in config["types"].items()}
    parameters = config["parameters"]
    kept = {k: v for k, v in parameters.items() if k != "route_mappings" or v}
    return config | {"types": types, "parameters": kept}
