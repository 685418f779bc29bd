"""Look for numbers that are not finite in the weights of a model, a piece at a time."""

import math
import re
from pathlib import Path
from typing import Any

from expandr_core.errors import DataError
from expandr_core.runtime.model_folders import model_files

PIECE = 2**24  # numbers


def check_finite(folder: Path, model: Any) -> None:
    """Check the weights in a folder; they are read once, and take at most a piece's memory.

    Args:
        folder: of the model.
        model: what was made of it, perhaps without weights; it says which tensors it ignores.

    Raises:
        DataError: if one is not finite, with its name.
    """
    from safetensors import safe_open

    patterns = {
        pattern
        for module in model.modules()
        for pattern in getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    }
    ignored = re.compile("|".join(sorted(patterns)) or "(?!)")  # such as masks of minus infinity
    for path in (folder / name for name in model_files(folder) if name.endswith(".safetensors")):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118
                if not ignored.search(name) and not _is_finite(weights, name):
                    raise DataError(
                        f"{path}: {name} holds numbers that are not finite (nan or inf); the weights "
                        "are damaged, or diverged in training, so get the model again"
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
