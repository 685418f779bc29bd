"""The family of sentence-transformers models, and the configuration that says how one is used."""

import json
import shutil
from pathlib import Path
from typing import Any

from expandr_core.encoders.portable import saved_modules
from expandr_core.errors import DataError
from expandr_core.options.conventions import CONVENTIONS
from expandr_core.options.retriever import ConventionOptions, Similarity
from expandr_core.runtime.model_folders import SENTENCE_CONFIG

PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
_HINTS = {"query": ("query",), "document": ("doc", "passage", "corpus")}
_OPTIONS = {"query": "query_prompt", "document": "passage_prompt"}


def claims(folder: Path) -> bool:
    """Tell whether sentence-transformers wrote a folder."""
    return (folder / "modules.json").is_file()


def import_into(
    folder: Path, out: Path, options: ConventionOptions, similarity: Similarity
) -> None:
    """Move the model, and complete its configuration."""
    from sentence_transformers.sentence_transformer.modules import Pooling

    move_files(folder, out)
    if convention := CONVENTIONS.get(options.name):
        for name, part in saved_modules(out):
            if name == "Pooling":
                mode, path = Pooling.load(str(part)).pooling_mode, part / "config.json"
                _check_agreement(path, "pooling", mode, options.name, convention.pooling)
    fill_config(out, options, similarity)


def move_files(folder: Path, out: Path) -> None:
    """Move all files of a folder into another one."""
    shutil.copytree(folder, out, copy_function=shutil.move, dirs_exist_ok=True)


def fill_config(folder: Path, options: ConventionOptions, similarity: Similarity) -> None:
    """Write into a model's configuration how it is used, where it does not say so.

    Args:
        folder: a model of sentence-transformers.
        options: a convention, which the configuration must not contradict ("model": none), and which
            of the model's prompts go before queries and passages.
        similarity: used if the configuration states none.

    Raises:
        DataError: if neither says how the model is used, or they contradict each other.
    """
    path = folder / SENTENCE_CONFIG
    config: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    filled = config | {
        "similarity_fn_name": _similarity(path, config, options.name, similarity),
        "prompts": _prompts(path, config, options),
    }
    if filled != config:
        path.write_text(json.dumps(filled, indent=2, sort_keys=True))


def _similarity(path: Path, config: dict[str, Any], name: str, chosen: Similarity) -> str:
    stated, convention = config.get("similarity_fn_name"), CONVENTIONS.get(name)
    if convention and stated is not None:
        _check_agreement(path, "similarity_fn_name", stated, name, convention.similarity)
    if convention:
        return convention.similarity
    if stated is not None:
        if stated not in ("cosine", "dot") and chosen == "model":
            raise DataError(
                f"{path}: similarity_fn_name is {stated!r}, but search compares by cosine or inner "
                "product; choose one in retriever.encoding.similarity"
            )
        return stated
    if chosen != "model":
        return chosen
    modules = json.loads((path.parent / "modules.json").read_bytes())
    if modules[-1]["type"].rpartition(".")[2] == "Normalize":
        return "cosine"
    raise DataError(
        f"{path}: no similarity_fn_name, and the vectors are not normalised, so nothing says how "
        "they are compared; set retriever.encoding.similarity, or retriever.convention"
    )


def _prompts(path: Path, config: dict[str, Any], options: ConventionOptions) -> dict[str, Any]:
    """Return the model's prompts; those named "query" and "document" are the ones in use."""
    stated: dict[str, Any] = config.get("prompts") or {}
    choices = {"query": options.query_prompt, "document": options.passage_prompt}
    used = {kind: _prompt(path, stated, kind, choice) for kind, choice in choices.items()}
    _refuse_doubt(path, stated, used, choices)
    if convention := CONVENTIONS.get(options.name):
        expected = {"query": convention.query_prompt, "document": convention.passage_prompt}
        for kind, prompt in expected.items():
            if used[kind] or choices[kind] != "model":
                _check_agreement(path, f"prompts.{kind}", used[kind], options.name, prompt)
        used = expected
    return stated | used


def _prompt(path: Path, stated: dict[str, Any], kind: str, choice: str) -> str:
    """Return the prompt for a kind of text, or ""."""
    if choice == "model":
        return next((stated[name] for name in PROMPT_NAMES[kind] if stated.get(name)), "")
    if choice and choice not in stated:
        raise DataError(
            f"{path}: no prompt is named {choice!r}, only {sorted(stated)}; correct "
            f"retriever.convention.{_OPTIONS[kind]}, or set it to '' for none"
        )
    return (stated[choice] or "") if choice else ""


def _refuse_doubt(
    path: Path, stated: dict[str, Any], used: dict[str, str], choices: dict[str, str]
) -> None:
    """Refuse to ignore a prompt that may be meant for queries or passages, judging by its name."""
    ignored = [name for name, prompt in stated.items() if prompt and prompt not in used.values()]
    for kind, choice in choices.items():
        hinting = [name for name in ignored if any(hint in name.lower() for hint in _HINTS[kind])]
        doubtful = hinting or (ignored and not any(used.values()))
        if choice == "model" and not used[kind] and doubtful:
            raise DataError(
                f"{path}: prompts {sorted(ignored)}, but none is named {PROMPT_NAMES[kind][0]!r}, so "
                "nothing says which are for search; name them in retriever.convention.query_prompt "
                "and retriever.convention.passage_prompt, or set these to '' for none"
            )


def _check_agreement(path: Path, what: str, stated: object, name: str, expected: object) -> None:
    if stated != expected:
        raise DataError(
            f"{path}: {what} is {stated!r}, but {expected!r} in the convention {name!r}; leave "
            "retriever.convention at 'model', or name another"
        )
