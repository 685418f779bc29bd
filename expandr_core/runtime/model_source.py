"""Resolve a model, a folder or a name on the Hugging Face hub, and hash its files."""

import re
from pathlib import Path

from expandr_core.errors import DataError, first_line
from expandr_core.runtime.model_folders import (
    ADAPTER,
    CONVERT,
    LEFT_OUT,
    PICKLES,
    check_folder,
    has_weights,
    model_files,
)
from expandr_core.store.store import sha256_of

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_OTHER_FILES = ["consolidated*", "original/*", "onnx/*", "openvino/*"]
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_TOKENIZER = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"]
_TOKENIZER += ["vocab.json", "merges.txt"]


def model_source(model: str, pickles: bool = False) -> tuple[Path, dict[str, str]]:
    """Return the local folder of a model, and the SHA-256 of each of its files.

    Args:
        model: a folder, or the name of a model to download from the Hugging Face hub.
        pickles: whether pickled weights are taken where there are no others.

    Raises:
        DataError: if it is neither, or fails `check_folder`.
    """
    unwanted = [f"*{suffix}" for suffix in sorted(LEFT_OUT)] + _OTHER_FILES
    folder = _resolve(model, ignore_patterns=unwanted)
    if pickles and not Path(model).expanduser().is_dir() and not has_weights(folder):
        unwanted = [f"*{suffix}" for suffix in sorted(LEFT_OUT - {".bin"})] + _OTHER_FILES
        folder = _resolve(model, ignore_patterns=unwanted)
    check_folder(folder, pickles)
    return folder, {name: sha256_of(folder / name) for name in model_files(folder, pickles)}


def adapter_source(adapter: str) -> tuple[Path, dict[str, str]]:
    """Return the local folder of an adapter of PEFT, and the SHA-256 of each of its files.

    These are its settings and weights, and a tokenizer's, if it brings one.

    Args:
        adapter: a folder, or a name on the Hugging Face hub.

    Raises:
        DataError: if it is neither, no adapter, or has no weights as safetensors.
    """
    folder = _resolve(adapter, allow_patterns=[ADAPTER, _ADAPTER_WEIGHTS, *_TOKENIZER])
    if not (folder / ADAPTER).is_file():
        whole = (folder / "config.json").is_file()
        raise DataError(
            f"{folder}: no {ADAPTER}, so "
            + ("a whole model; name it in llm.model" if whole else "no adapter of PEFT; correct it")
        )
    if not (folder / _ADAPTER_WEIGHTS).is_file():
        pickled = any(path.suffix in PICKLES for path in folder.glob("adapter_model*"))
        raise DataError(
            f"{folder}: no {_ADAPTER_WEIGHTS}"
            + (", only a pickle, which can run any code" if pickled else "")
            + "; a pickled adapter_model.bin is not downloaded from the hub: get it with `hf download "
            f"NAME --local-dir FOLDER`, convert it with `{CONVERT} FOLDER`, and name the folder"
        )
    wanted = [ADAPTER, _ADAPTER_WEIGHTS, *_TOKENIZER]
    found = {path for pattern in wanted for path in folder.glob(pattern) if path.is_file()}
    return folder, {path.name: sha256_of(path) for path in sorted(found)}


def file_source(model: str, names: tuple[str, ...]) -> tuple[Path, str]:
    """Return the first of some files that a model has, and its SHA-256; no weights are downloaded.

    Args:
        model: a folder, or the name of a model on the Hugging Face hub.
        names: of the file.

    Raises:
        DataError: if it is neither, or has no such file.
    """
    folder = _resolve(model, allow_patterns=list(names))
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise DataError(f"{folder}: no {' or '.join(names)}; name a folder that has one")
    return found[0], sha256_of(found[0])


def _resolve(model: str, **patterns: list[str]) -> Path:
    folder = Path(model).expanduser()
    return (folder if folder.is_dir() else _download(model, patterns)).absolute()


def _download(model: str, patterns: dict[str, list[str]]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if not _HUB_NAME.fullmatch(model):
        raise DataError(f"{model}: no such folder, and not a name on the hub; correct the model")
    try:
        folder = snapshot_download(
            model,
            allow_patterns=patterns.get("allow_patterns"),
            ignore_patterns=patterns.get("ignore_patterns"),
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
