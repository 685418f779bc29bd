"""Convert pickled weights to safetensors: `python -m expandr_core.encoders.convert_weights FOLDER`.

Nothing else here reads pickles, which can run any code. This program reads them at your request, and
lets torch build only tensors (`weights_only`). New files are written beside the old; none is deleted.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from expandr_core.errors import DataError
from expandr_core.runtime.model_folders import module_folders

if TYPE_CHECKING:
    from torch import Tensor

_OLD, _NEW = "pytorch_model", "model"


def convert(folder: Path) -> list[Path]:
    """Convert `pytorch_model*.bin` of a model and its sentence-transformers modules, or an adapter's.

    Returns:
        The written files.

    Raises:
        DataError: if there are no pickles, their conversions exist, or they hold more than tensors.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    pickles = [
        path
        for part in module_folders(folder)
        for pattern in (f"{_OLD}*.bin", "adapter_model.bin")
        for path in sorted(part.glob(pattern))
    ]
    if not pickles:
        raise DataError(f"{folder}: no {_OLD}.bin or adapter_model.bin, so nothing to convert")
    written = [_convert_file(path) for path in pickles]
    for part in module_folders(folder):
        index = part / f"{_OLD}.bin.index.json"
        if index.is_file():
            listed = json.loads(index.read_bytes())
            files = listed["weight_map"].items()
            listed["weight_map"] = {name: _renamed(Path(file)).name for name, file in files}
            target = part / f"{_NEW}.safetensors.index.json"
            target.write_text(json.dumps(listed, indent=2))
            written.append(target)
    return written


def replace_pickles(folder: Path) -> None:
    """Convert the pickled weights in a copy of a model, and delete them; see `convert`."""
    convert(folder)
    for part in module_folders(folder):
        for path in [*part.glob(f"{_OLD}*.bin"), *part.glob(f"{_OLD}.bin.index.json")]:
            path.unlink()


def _renamed(path: Path) -> Path:
    return path.with_name(path.stem.replace(_OLD, _NEW, 1) + ".safetensors")


def _convert_file(path: Path) -> Path:
    from safetensors.torch import save_file

    target = _renamed(path)
    if target.exists():
        raise DataError(f"{target} exists already; remove it to convert {path.name} again")
    save_file(_read(path), target, {"format": "pt"})
    return target


def _read(path: Path) -> dict[str, "Tensor"]:
    """Read a pickle of tensors by name, as tensors that share no memory."""
    import pickle

    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise DataError(
            f"{path}: cannot be read, as it is damaged or holds more than tensors "
            f"({str(error).splitlines()[0]}); get weights from a source that has safetensors"
        ) from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(each) for each in tensors.values()):
        raise DataError(f"{path}: not tensors by name; name the folder that save_pretrained wrote")
    whole = torch.contiguous_format
    return {name: tensor.clone(memory_format=whole) for name, tensor in tensors.items()}


def main() -> None:
    """Convert the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Convert pickled weights to safetensors.")
    parser.add_argument("folder", type=Path, help="of a model with pytorch_model.bin")
    try:
        for path in convert(parser.parse_args().folder):
            sys.stdout.write(f"{path}\n")
    except DataError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
