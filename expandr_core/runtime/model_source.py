"""Resolve a model, a folder or a name on the Hugging Face hub, and hash its files."""

import re
from pathlib import Path

from expandr_core.errors import DataError, first_line
from expandr_core.runtime.model_folders import LEFT_OUT, check_folder, model_files
from expandr_core.store.store import sha256_of

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def model_source(model: str) -> tuple[Path, dict[str, str]]:
    """Return the local folder of a model, and the SHA-256 of each of its files.

    Args:
        model: a folder, or the name of a model to download from the Hugging Face hub.

    Raises:
        DataError: if it is neither, or fails `check_folder`.
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
            f"{model}: a gated model; accept its terms on its page on the hub and log in with "
            "`hf auth login`, or name a local folder"
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(f"{model}: neither a local folder nor a model on the hub") from error
    except OSError as error:
        raise DataError(
            f"{model}: no folder here, no earlier download, and the hub failed ({first_line(error)}); "
            "connect to the network, or name a local folder"
        ) from error
    return Path(folder)
