"""One prompt of an expand stage, made again as text and as token ids."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import ValidationError

from expandr_core.errors import DataError
from expandr_core.lineage.nodes import Node
from expandr_core.options.generation import ChatOptions, PromptOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.manifests import DamagedArtifact
from expandr_core.store.store import Store

_WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def example_prompt(store: Store, expansions: Node | None) -> dict[str, Any] | None:
    """Return the prompt for the first query: its id, the user's turn, and the token ids.

    Args:
        store: that keeps the language model; only the files of its tokenizer are read.
        expansions: of the stage expand; None if no text was written.

    Returns:
        None if no text was written; `unavailable` says why the prompt cannot be made again.
    """
    if expansions is None or "llm" not in expansions.inputs:
        return None
    options = expansions.manifest.get("options", {})
    try:
        prompt = PromptOptions(**options["prompt"])
        chat = ChatOptions(**options.get("chat", {}))
        row = _first_query(store, expansions)
        ids, turn = _rendered(store, expansions, prompt, chat, row)
    except (
        *(DataError, DamagedArtifact, ValidationError, OSError, LookupError, ValueError, TypeError),
    ) as error:
        return {"unavailable": f"{type(error).__name__}: {error}"}
    return {"query_id": row["query_id"], "text": turn, "ids": ids}


def _first_query(store: Store, expansions: Node) -> dict[str, Any]:
    path = store.local(Artifact(**expansions.inputs["queries"]))
    file = pq.ParquetFile(path)
    columns = [c for c in ("query_id", "query", "positive") if c in file.schema_arrow.names]
    return next(file.iter_batches(1, columns=columns)).to_pylist()[0]


def _rendered(
    store: Store, expansions: Node, prompt: PromptOptions, chat: ChatOptions, row: dict[str, Any]
) -> tuple[list[int], str]:
    from expandr_core.generation.chat_templates import load_tokenizer
    from expandr_core.generation.prompts import fit_prompt

    tokenizer = load_tokenizer(_without_weights(store, expansions.inputs["llm"]["key"]), chat)
    fitted = fit_prompt(tokenizer, prompt, row["query"], row.get("positive", ""), prompt.max_tokens)
    return list(fitted.ids), fitted.turn


def _without_weights(store: Store, key: str) -> Path:
    """Return the local folder of a model; from S3, without its weights."""
    manifest = store.manifest(key)
    folder = None
    for file in manifest["files"]:
        if not file["path"].endswith(_WEIGHTS):
            artifact = Artifact(key=key, digest=file["sha256"], path=file["path"])
            path = store.local(artifact)
            folder = path.parents[file["path"].count("/")]
    if folder is None:
        raise DataError(f"{key} holds no tokenizer")
    return folder
