"""Check that the weights in a model folder fit its config.json and are finite."""

import math
import re
from pathlib import Path
from typing import Any

from expandr_core.errors import DataError, first_line
from expandr_core.runtime.model_folders import model_files

PIECE = 2**24  # numbers read at once


def load_without_weights(auto_model: Any, folder: Path, optional: str = "") -> Any:
    """Load a model on the meta device, and check that its weights fit config.json.

    Extra weights of modules that the model lacks, such as another head, are allowed.

    Args:
        auto_model: a transformers auto class, such as `AutoModel`.
        folder: of the model.
        optional: prefix of weights that may be missing.

    Raises:
        DataError: if the model does not load, or weights are missing, unexpected or misshapen.
    """
    try:
        model, report = auto_model.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            device_map="meta",
            output_loading_info=True,
        )
    except Exception as error:
        raise DataError(f"{folder}: the model does not load ({first_line(error)})") from error
    modules = {name for name, _ in model.named_modules() if name}
    prefix = f"{model.base_model_prefix}."  # of names in the files of a model with a head
    faults = {
        "missing": [n for n in report["missing_keys"] if not (optional and n.startswith(optional))],
        "of another shape": [str(name) for name in report["mismatched_keys"]],
        "unexpected": [
            name
            for name in report["unexpected_keys"]
            if not modules.isdisjoint(
                part.rpartition(".")[0] for part in (name, name.removeprefix(prefix))
            )
        ],
    }
    for fault, names in faults.items():
        if names:
            raise DataError(
                f"{folder}: {len(names)} weights are {fault} ({', '.join(sorted(names)[:3])}), so they "
                "do not fit config.json; get the model again"
            )
    return model


def check_finite(folder: Path, model: Any) -> None:
    """Check that all weights in a folder are finite, reading a piece at a time.

    Args:
        folder: of the model.
        model: the same model, even on the meta device; it declares which tensors it ignores.

    Raises:
        DataError: naming the first tensor that is not finite.
    """
    from safetensors import safe_open

    patterns = {
        pattern
        for module in model.modules()
        for pattern in getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    }
    ignored = re.compile("|".join(sorted(patterns)) or "(?!)")  # for example masks of -inf
    for path in (folder / name for name in model_files(folder) if name.endswith(".safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                if not ignored.search(name) and not _is_finite(weights, name):
                    raise DataError(
                        f"{path}: {name} has numbers that are not finite (nan or inf); the weights "
                        "are damaged or diverged in training, so get the model again"
                    )


def _is_finite(weights: Any, name: str) -> bool:
    view = weights.get_slice(name)
    shape = view.get_shape()
    if not shape or math.prod(shape) <= PIECE:
        return _finite(weights.get_tensor(name))
    rows = max(1, PIECE // math.prod(shape[1:]))
    return all(_finite(view[start : start + rows]) for start in range(0, shape[0], rows))


def _finite(numbers: Any) -> bool:
    if not numbers.is_floating_point():
        return True
    return bool((numbers.float() if numbers.element_size() == 1 else numbers).isfinite().all())
