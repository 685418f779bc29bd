"""Model folders: which files belong to a model, and checks before anything is loaded.

All files at the top and in the folders of sentence-transformers modules belong to a model, except:

- pickled weights and code, both of which can run anything;
- weights of other libraries, and hidden files;
- safetensors that transformers does not read: it reads model.safetensors or, without one, the shards in
  the index. If a folder has both, the index is ignored, so that every engine reads the same weights;
- the manifest of a store;
- an adapter beside full weights: if the merged model was saved into the folder of its adapter,
  transformers would apply the adapter twice.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expandr_core.errors import DataError

log = logging.getLogger(__name__)
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, MANIFEST = "adapter_config.json", "manifest.json"
SENTENCE_CONFIG = "config_sentence_transformers.json"
ROUTER = "router_config.json"
CONVERT = "python -m expandr_core.encoders.convert_weights"
ANCHORDR = "expandr_core.anchordr.AnchorDR"  # the only module of ours allowed in modules.json
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
CODE = {".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".bat", ".exe", ".ipynb"}
OTHERS = {".h5", ".msgpack", ".onnx", ".gguf", ".ggml", ".ot", ".tflite", ".mlmodel"}
LEFT_OUT = PICKLES | CODE | OTHERS
_ADAPTER_ALONE = (
    "an adapter, not a model; for an LLM, name its base model in llm.model and the adapter in "
    "llm.adapter; otherwise merge it into its base model first"
)
_NO_CODE = "code that comes with a model is not run; use a model that the library supports itself"


def model_files(folder: Path, pickles: bool = False) -> list[str]:
    """Return the files of a model, relative to its folder, sorted.

    Args:
        folder: of the model.
        pickles: whether pickled weights belong to it where there are no safetensors.
    """
    return sorted(
        path.relative_to(folder).as_posix()
        for part in module_folders(folder)
        for path in _files_of(part)
        if _belongs(path) or (pickles and path in _pickled_weights(part))
    )


def _pickled_weights(part: Path) -> list[Path]:
    """Return the weights that can be converted, if there are no safetensors."""
    return [] if _weights_of(part) else sorted(part.glob("pytorch_model*.bin"))


def has_weights(folder: Path) -> bool:
    """Tell whether there are safetensors."""
    return any(map(_weights_of, module_folders(folder)))


def module_folders(folder: Path) -> list[Path]:
    """Return the folders of a model and its sentence-transformers modules, including routed ones."""
    names = {"", *(str(module.get("path", "")) for module in _modules(folder))}
    folders = [(folder / name).resolve() for name in sorted(names)]
    if not all(part.is_relative_to(folder.resolve()) for part in folders):
        raise DataError(
            f"{folder}/modules.json: a module lies outside the folder; correct its path"
        )
    return [folder / name for name in sorted(names) if (folder / name).is_dir()]


def _files_of(part: Path) -> Iterator[Path]:
    return (path for path in part.iterdir() if path.is_file() and not path.name.startswith("."))


def _belongs(path: Path) -> bool:
    if path.name == INDEX:
        return not path.with_name(WEIGHTS).is_file()
    if path.suffix.lower() == ".safetensors":
        return path.name in _weights_of(path.parent)
    return path.suffix.lower() not in LEFT_OUT and path.name not in (ADAPTER, MANIFEST)


def _weights_of(part: Path) -> list[str]:
    """Return the names of the weights that transformers would read; files may be missing."""
    if (part / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (part / INDEX).is_file():
        return []
    return sorted(set(read_json_object(part / INDEX).get("weight_map", {}).values()))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); get the file again") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        DataError: if it does not.
    """
    found = _read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object; get the file again")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json."""
    return read_json_object(folder / "config.json")


def _modules(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    modules = _read_json(path) if path.is_file() else []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise DataError(f"{path}: not a list of modules; get the file again")
    return [
        each
        for module in modules
        for each in (module, *routed(folder, str(module.get("path", ""))))
    ]


def routed(folder: Path, path: str) -> list[dict[str, str]]:
    """Return type and path of a router's modules; a router has one encoder per kind of text.

    Args:
        folder: of the model.
        path: of a module in it; one that is not a router gives [].
    """
    for name in (ROUTER, "config.json"):  # the latter is from older versions
        config = folder / path / name
        found = _read_json(config) if config.is_file() else None
        if isinstance(found, dict) and isinstance(found.get("types"), dict):
            return [
                {"type": str(kind), "path": f"{path}/{name}".strip("/")}
                for name, kind in found["types"].items()
            ]
    return []


def check_folder(folder: Path, pickles: bool = False) -> None:
    """Check a model folder without loading it; log which weights are ignored.

    Args:
        folder: of the model.
        pickles: whether pickled weights will do; they are not opened.

    Raises:
        DataError: if it is not a model folder, needs its own code, has no safetensors weights, or may
            or may not have an adapter merged in.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; correct the model")
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        if (folder / ADAPTER).exists():
            raise DataError(f"{folder}: {_ADAPTER_ALONE}")
        raise DataError(
            f"{folder}: no config.json, so not a model; name the folder that save_pretrained wrote"
        )
    _check_code(folder)
    for part in module_folders(folder):
        _check_adapter(part)
        if not (pickles and _pickled_weights(part)):
            _check_files(folder, part)
    _check_weights(folder, pickles)


def _check_code(folder: Path) -> None:
    """Refuse models that name their own code, or that the libraries would alter without it."""
    types = [str(module.get("type", "")) for module in _modules(folder)]
    encoders = {name for name in types if not name.endswith(".Router")}
    for name in types:
        if not name.startswith("sentence_transformers.") and encoders != {ANCHORDR}:
            raise DataError(f"{folder / 'modules.json'}: module type {name!r}; {_NO_CODE}")
    for part in module_folders(folder):
        for path in sorted(part.glob("*.json")):
            try:
                content = json.loads(path.read_bytes())
            except ValueError:
                continue  # whoever needs the file reports it
            if _names_code(content):
                raise DataError(f"{path}: auto_map names its own code; {_NO_CODE}")
            activation = content.get("activation_function") if isinstance(content, dict) else None
            if activation and "." in activation and not activation.startswith("torch."):
                raise DataError(
                    f"{path}: activation_function is {activation!r}, for which "
                    f"sentence-transformers would substitute another; {_NO_CODE}"
                )
    config = folder / SENTENCE_CONFIG
    kind = read_json_object(config).get("model_type") if config.is_file() else None
    if kind not in (None, "SentenceTransformer"):
        raise DataError(
            f"{config}: model_type is {kind!r}, whose modules sentence-transformers would replace; "
            "name a model that SentenceTransformer.save wrote"
        )


def _names_code(content: Any) -> bool:
    """Tell whether there is an auto_map anywhere, other than as a token with its id."""
    if isinstance(content, dict):
        number = isinstance(content.get("auto_map", 0), int | float)
        return not number or any(_names_code(each) for each in content.values())
    return isinstance(content, list) and any(_names_code(each) for each in content)


def _check_adapter(part: Path) -> None:
    path = part / ADAPTER
    if not path.is_file():
        return
    if not _weights_of(part) or not (part / "config.json").is_file():
        raise DataError(f"{part}: {_ADAPTER_ALONE}")
    base = read_json_object(path).get("base_model_name_or_path")
    if isinstance(base, str) and Path(base).is_dir() and Path(base).samefile(part):
        raise DataError(
            f"{path}: the adapter belongs to the weights beside it, which may or may not have it "
            "merged in already; save the merged model to a separate folder or, if they do, remove "
            f"{ADAPTER}"
        )
    log.warning(
        "%s: %s is used as a merged model; the adapter beside it is ignored (of %s)",
        part,
        ", ".join(_weights_of(part)[:1]),
        base or "an unnamed model",
    )


def _check_files(folder: Path, part: Path) -> None:
    names = _weights_of(part)
    pickles = [
        path.name
        for path in sorted(part.iterdir())
        if path.suffix in PICKLES and "model" in path.name
    ]
    if pickles and not names:
        raise DataError(
            f"{part}: the weights are pickle only ({pickles[0]}), which can run any code; "
            f"convert them with `{CONVERT} {folder}`, use a revision with {WEIGHTS}, or, for a "
            "retriever, set retriever.allow_pickle_conversion"
        )
    for name in names:
        if Path(name).name != name or not (part / name).is_file():
            raise DataError(f"{part / name} is missing; {INDEX} lists it; get it again")
    if names == [WEIGHTS] and (part / INDEX).is_file():
        log.warning("%s: %s is used, and the shards in %s are not", part, WEIGHTS, INDEX)
    config = part / "config.json"
    explicit = read_json_object(config).get("transformers_weights") if config.is_file() else None
    if explicit not in (None, WEIGHTS, INDEX) or (explicit == INDEX and names == [WEIGHTS]):
        raise DataError(
            f"{config}: transformers_weights names {explicit}, which vLLM would not read; rename the "
            f"weights to {WEIGHTS} and remove that line"
        )


def _check_weights(folder: Path, pickles: bool) -> None:
    from safetensors import SafetensorError, safe_open

    weights = [folder / name for name in model_files(folder) if name.endswith(".safetensors")]
    if not weights and not (pickles and any(map(_pickled_weights, module_folders(folder)))):
        raise DataError(
            f"{folder}: no weights; a {WEIGHTS} is needed. Pickled weights (pytorch_model.bin) are "
            "not downloaded from the hub: get them with `hf download NAME --local-dir FOLDER`, "
            f"convert them with `{CONVERT} FOLDER`, and name the folder; for a retriever, "
            "retriever.allow_pickle_conversion does all of it"
        )
    for path in weights:
        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError as error:
            raise DataError(f"{path}: damaged ({error}); get the file again") from error
