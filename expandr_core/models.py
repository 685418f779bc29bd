"""Models from elsewhere: which files belong to one, and whether it can be used, before any work.

Only safetensors, JSON and tokenizer files count. Weights as pickle and code that comes with a model
would run whatever they contain, so both are refused.
"""

import json
import re
from pathlib import Path
from typing import Any, cast

from expandr_core.errors import DataError
from expandr_core.store import sha256_of

_WEIGHTS = ".safetensors"
_SUFFIXES = {_WEIGHTS, ".json", ".txt", ".model", ".jinja"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
CONVERT = "python -m expandr_core.convert_weights"
ANCHORDR = "expandr_core.anchordr.AnchorDR"  # the one module of ours that a folder may name
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def model_source(model: str) -> tuple[Path, dict[str, str]]:
    """Return the local folder of a model, and the SHA-256 of each file that belongs to it.

    Args:
        model: a folder, or the name of a model on the Hugging Face hub, which is downloaded.

    Raises:
        DataError: if it is neither, or cannot be used whatever it is for (see `check_folder`).
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
            allow_patterns=[f"*{suffix}" for suffix in sorted(_SUFFIXES)],
            ignore_patterns=["consolidated*", "original/*", "onnx/*", "openvino/*"],
        )
    except GatedRepoError as error:
        raise DataError(
            f"{model}: the hub gives it only to those who accepted its terms; accept them on its "
            "page, log in with `hf auth login`, or name a local folder"
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(f"{model}: neither a folder here nor a model on the hub") from error
    return Path(folder)


def model_files(folder: Path) -> list[str]:
    """Return the files that belong to a model, relative to its folder, sorted.

    These are the files at the top and in the folders of a sentence-transformers model's modules;
    where an index lists the weights, only those it lists.
    """
    found = []
    for part in module_folders(folder):
        files = [path for path in part.iterdir() if path.suffix in _SUFFIXES and path.is_file()]
        index = part / "model.safetensors.index.json"
        listed = set(_read_json(index).get("weight_map", {}).values()) if index in files else None
        found += [
            path.relative_to(folder).as_posix()
            for path in files
            if path.suffix != _WEIGHTS or listed is None or path.name in listed
        ]
    return sorted(found)


def module_folders(folder: Path) -> list[Path]:
    """Return the model's folder and those of its sentence-transformers modules."""
    names = {""}
    if (folder / "modules.json").is_file():
        modules = _read_json(folder / "modules.json")
        names |= {str(module.get("path", "")) for module in modules}
    folders = [(folder / name).resolve() for name in sorted(names)]
    if not all(part.is_relative_to(folder.resolve()) for part in folders):
        raise DataError(
            f"{folder}/modules.json: a module lies outside the folder; correct its path"
        )
    return [folder / name for name in sorted(names) if (folder / name).is_dir()]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); get the file again") from error


def check_folder(folder: Path) -> None:
    """Check what can be told from the files alone.

    Raises:
        DataError: if it is no model folder, brings code of its own, or has no safetensors weights.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; correct the model")
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise DataError(f"{folder}: an adapter, not a model; merge it into its base model first")
    modules = folder / "modules.json"
    if not modules.is_file() and not (folder / "config.json").is_file():
        raise DataError(
            f"{folder}: no config.json, so not a model; name the folder that save_pretrained wrote"
        )
    remedy = "code that comes with a model is not run; use a model that the library itself knows"
    types = (
        [str(module.get("type", "")) for module in _read_json(modules)] if modules.is_file() else []
    )
    for name in types:
        if not name.startswith("sentence_transformers.") and types != [ANCHORDR]:
            raise DataError(f"{modules}: module type {name!r}; {remedy}")
    for part in module_folders(folder):
        config = part / "config.json"
        if config.is_file() and "auto_map" in _read_json(config):
            raise DataError(f"{config}: auto_map names code of its own; {remedy}")
    _check_weights(folder)


def _check_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    for part in module_folders(folder):
        pickles = sorted(path.name for path in part.iterdir() if path.suffix in _PICKLES)
        if pickles and not list(part.glob(f"*{_WEIGHTS}")):
            raise DataError(
                f"{part}: the weights are pickle only ({pickles[0]}), which can run any code; "
                f"convert them with `{CONVERT} {folder}`, or use a revision with model.safetensors"
            )
        index = part / "model.safetensors.index.json"
        if index.is_file():
            for name in sorted(set(_read_json(index).get("weight_map", {}).values())):
                if not (part / name).is_file():
                    raise DataError(
                        f"{part / name} is missing; {index.name} lists it; get it again"
                    )
    weights = [folder / name for name in model_files(folder) if name.endswith(_WEIGHTS)]
    if not weights:
        raise DataError(
            f"{folder}: no weights; a model.safetensors is needed. From the hub, weights as pickle "
            "(pytorch_model.bin) are not taken: get these with `hf download NAME --local-dir FOLDER`, "
            f"convert them with `{CONVERT} FOLDER`, and name the folder"
        )
    for path in weights:
        try:
            with safe_open(path, "np"):
                pass
        except SafetensorError as error:
            raise DataError(f"{path}: damaged ({error}); get the file again") from error


def check_llm(folder: Path) -> None:
    """Check that a folder holds a causal language model with tokenizer and chat template.

    Only the headers of the weights are read.

    Raises:
        DataError: with what is wrong and what to do.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no config.json, so not a language model; correct llm.model")
    architectures = _read_json(folder / "config.json").get("architectures") or ["none"]
    if not set(architectures) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        raise DataError(
            f"{folder}/config.json: {architectures[0]} is not a causal language model; "
            "name one such as LlamaForCausalLM in llm.model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise DataError(
            f"{folder}: the tokenizer does not load ({first_line(error)}); "
            "add the model's own tokenizer.json and tokenizer_config.json"
        ) from error
    try:
        model, loaded = cast(
            tuple[Any, dict[str, Any]],
            AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, device_map="meta", output_loading_info=True
            ),
        )
    except Exception as error:
        raise DataError(f"{folder}: the model does not load ({first_line(error)})") from error
    for fault in ("missing_keys", "mismatched_keys"):
        if loaded[fault]:
            raise DataError(
                f"{folder}: the weights do not fit config.json ({fault.replace('_', ' ')}: "
                f"{sorted(map(str, loaded[fault]))[0]}, ...); get the model again"
            )
    _check_tokenizer(folder, tokenizer, model)


def _check_tokenizer(folder: Path, tokenizer: Any, model: Any) -> None:
    """Check that the tokenizer is the model's, and that the chat template works."""
    from expandr_core.prompts import prompt_ids, turn_end_id

    rows = model.get_input_embeddings().weight.shape[0]
    remedy = "use the tokenizer the model was trained with"
    if not tokenizer.get_vocab() or len(tokenizer) > rows:
        raise DataError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings; "
            f"{remedy}"
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(model.generation_config, name)
        for token in value if isinstance(value, list) else [value]:
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


def check_retriever(folder: Path) -> None:
    """Check that a folder loads as a sentence-transformers model and encodes a sentence.

    Raises:
        DataError: with what is wrong and what to do.
    """
    import numpy

    from expandr_core.encoder import refuse_default_prompt
    from expandr_core.sentence_models import load_sentence_model

    try:
        model = load_sentence_model(folder, "cpu")
        vectors = model.encode(["Wings lift."], show_progress_bar=False, convert_to_tensor=True)
    except Exception as error:
        raise DataError(
            f"{folder}: does not work as a sentence-transformers model ({first_line(error)}); "
            "name a folder written by SentenceTransformer.save in retriever.model"
        ) from error
    refuse_default_prompt(folder, model)
    vectors = vectors.float().numpy()
    if vectors.ndim != 2 or not numpy.isfinite(vectors).all() or not vectors.any():
        raise DataError(
            f"{folder}: a sentence is encoded as {vectors.shape} {vectors.ravel()[:3]}..., not "
            "as a finite vector; the weights are damaged, so get the model again"
        )


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or else its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
