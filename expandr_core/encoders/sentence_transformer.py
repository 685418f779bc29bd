"""Retrievers as sentence-transformers folders: loaded by our own rules, or made complete.

Whatever a retriever was before, its copy in the store says by itself how it is used: modules, pooling,
prompts, longest text and similarity. Everything downstream reads that, and asks for nothing else.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expandr_core.encoders.conventions import CONVENTIONS, Convention, Similarity
from expandr_core.encoders.portable import saved_modules
from expandr_core.errors import DataError
from expandr_core.runtime.model_folders import ANCHORDR

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)
CONFIG = "config_sentence_transformers.json"
Prompts = dict[str, str]  # by kind, "query" and "document": a prompt's name, "" or "model"
AS_NAMED: Prompts = {"query": "model", "document": "model"}
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
_HINTS = {"query": ("query",), "document": ("doc", "passage", "corpus")}
_OPTIONS = {"query": "query_prompt", "document": "passage_prompt"}


def load_sentence_model(folder: Path, device: str) -> "SentenceTransformer":
    """Load a sentence-transformers model, which may be AnchorDR; no code of the folder is run.

    sentence-transformers itself imports a class of another package, such as ours, only if it may run
    any code that a folder brings.

    Args:
        folder: with modules.json.
        device: "cpu" or "cuda".

    Raises:
        DataError: if AnchorDR's weights are not whole.
        ValueError: and others, as sentence-transformers raises them.
    """
    from sentence_transformers import SentenceTransformer

    modules = json.loads((folder / "modules.json").read_bytes())
    if ANCHORDR not in [module["type"] for module in modules]:
        return SentenceTransformer(
            str(folder), device=device, local_files_only=True, trust_remote_code=False
        )
    from expandr_core.anchordr.model import AnchorDR

    config = json.loads((folder / CONFIG).read_bytes())
    return SentenceTransformer(
        modules=[AnchorDR.load(str(folder))],
        device=device,
        prompts=config["prompts"],
        default_prompt_name=config["default_prompt_name"],
        similarity_fn_name=config["similarity_fn_name"],
        truncate_dim=config.get("truncate_dim"),
    )


def save_anchordr(published: Path, folder: Path, convention: str) -> None:
    """Write a published AnchorDR as a sentence-transformers model; it compares by inner product.

    Raises:
        DataError: if it is not whole (see `anchordr_checkpoint.read_published`), or is given the
            convention of other models.
    """
    from sentence_transformers import SentenceTransformer

    from expandr_core.encoders.anchordr_checkpoint import read_published

    if convention != "model":
        raise DataError(
            f"{published}: AnchorDR, which is not used by the convention {convention!r}; leave "
            "retriever.convention at 'model'"
        )
    if (published / "modules.json").exists():
        log.warning(
            "%s: modules.json takes AnchorDR for a T5's encoder, and is left out", published
        )
    model = SentenceTransformer(
        modules=[read_published(published)], device="cpu", similarity_fn_name="dot"
    )
    model.save(str(folder), create_model_card=False)


def complete(
    folder: Path, convention: str, similarity: Similarity, prompts: Prompts = AS_NAMED
) -> None:
    """Let a folder say how its retriever is used, where it does not.

    Args:
        folder: a model of transformers or sentence-transformers; files are added or changed.
        convention: a name in `CONVENTIONS`; it may not contradict what the folder says. "model": the
            folder has to say everything.
        similarity: the user's choice; it stands in for what the folder does not say.
        prompts: names, among the folder's own, of the prompts for queries and for documents; ""
            for none, "model" for those that have the usual names.

    Raises:
        DataError: if something is not said, or contradicts the convention.
    """
    known = CONVENTIONS.get(convention)
    if not (folder / "modules.json").is_file():
        if known is None:
            listed = "".join(f"\n  {name} = {each}" for name, each in CONVENTIONS.items())
            raise DataError(
                f"{folder}: no sentence-transformers configuration (modules.json), so nothing says "
                f"how its tokens become a vector; set retriever.convention to its own:{listed}"
            )
        from expandr_core.encoders.plain import write_modules

        write_modules(folder, known)
    elif known is not None:
        _check_pooling(folder, convention, known)
    _settle(folder, convention, known, similarity, prompts)


def _check_pooling(folder: Path, convention: str, known: Convention) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    for name, path in saved_modules(folder):
        if name == "Pooling":
            mode = Pooling.load(str(path)).pooling_mode
            _same(path / "config.json", "pooling", mode, convention, known.pooling)


def _settle(
    folder: Path, name: str, known: Convention | None, similarity: Similarity, prompts: Prompts
) -> None:
    """Write similarity and prompts into the configuration, if they are not there."""
    path = folder / CONFIG
    config: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    settled = config | {
        "similarity_fn_name": _similarity(path, config, name, known, similarity),
        "prompts": _prompts(path, config, name, known, prompts),
    }
    if settled != config:
        path.write_text(json.dumps(settled, indent=2, sort_keys=True))


def _similarity(
    path: Path, config: dict[str, Any], name: str, known: Convention | None, chosen: Similarity
) -> str:
    said = config.get("similarity_fn_name")
    if said is not None:
        if known is not None:
            _same(path, "similarity_fn_name", said, name, known.similarity)
        if said not in ("cosine", "dot") and chosen == "model":
            raise DataError(
                f"{path}: similarity_fn_name is {said!r}, but search compares by cosine or inner "
                "product; choose one in retriever.encoding.similarity"
            )
        return said
    if known is not None:
        return known.similarity
    if chosen != "model":
        return chosen
    modules = json.loads((path.parent / "modules.json").read_bytes())
    if modules[-1]["type"].rpartition(".")[2] == "Normalize":
        return "cosine"
    raise DataError(
        f"{path}: no similarity_fn_name, and the vectors are not normalised, so nothing says how "
        "they are compared; set retriever.encoding.similarity, or retriever.convention"
    )


def _prompts(
    path: Path, config: dict[str, Any], name: str, known: Convention | None, chosen: Prompts
) -> dict[str, Any]:
    """Return the folder's prompts, of which "query" and "document" are those that are used."""
    said: dict[str, Any] = config.get("prompts") or {}
    own = {kind: _own_prompt(path, said, kind, choice) for kind, choice in chosen.items()}
    if "model" in chosen.values():
        _refuse_doubt(path, said, own, chosen)
    if known is not None:
        conventional = {"query": known.query_prompt, "document": known.passage_prompt}
        for kind, prompt in conventional.items():
            if own[kind] or chosen[kind] != "model":
                _same(path, f"prompts.{kind}", own[kind], name, prompt)
        own = conventional
    return said | own


def _own_prompt(path: Path, said: dict[str, Any], kind: str, choice: str) -> str:
    """Return the prompt for a kind of text; empty if there is none."""
    if choice == "model":
        return next((said[name] for name in PROMPT_NAMES[kind] if said.get(name)), "")
    if choice and choice not in said:
        raise DataError(
            f"{path}: no prompt is named {choice!r}, only {sorted(said)}; correct "
            f"retriever.convention.{_OPTIONS[kind]}, or set it to '' for none"
        )
    return (said[choice] or "") if choice else ""


def _refuse_doubt(path: Path, said: dict[str, Any], own: dict[str, str], chosen: Prompts) -> None:
    """Refuse to leave out a prompt that may be meant for queries or passages, by its name.

    Raises:
        DataError: with the names that there are.
    """
    left = [name for name, prompt in said.items() if prompt and prompt not in own.values()]
    for kind, choice in chosen.items():
        hints = [name for name in left if any(hint in name.lower() for hint in _HINTS[kind])]
        if choice == "model" and not own[kind] and (hints or (left and not any(own.values()))):
            raise DataError(
                f"{path}: prompts {sorted(left)}, but none is named {PROMPT_NAMES[kind][0]!r}, so "
                "nothing says which is for search; name them in retriever.convention.query_prompt and "
                "retriever.convention.passage_prompt, with '' for none"
            )


def _same(path: Path, what: str, said: object, name: str, expected: object) -> None:
    if said != expected:
        raise DataError(
            f"{path}: {what} is {said!r}, but in the convention {name!r} it is {expected!r}; leave "
            "retriever.convention at 'model', or name another"
        )
