"""Export an artifact, or what the models of a run were trained on, into a new folder."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expandr_core.data.tables import file_in
from expandr_core.errors import DataError
from expandr_core.exports.training_data import export_examples, export_pairs
from expandr_core.generation.adapters import is_adapter
from expandr_core.store.artifacts import Artifact
from expandr_core.store.filesystems import apply_umask, explain_full_disk, flock
from expandr_core.store.manifests import MANIFEST
from expandr_core.store.store import Store

MODEL_FILES = {"config.json", "modules.json", "adapter_config.json"}  # one of them is in its folder
REMEDY = "free some space there, or name a folder on another disk"


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to write to, which becomes the target if nothing fails.

    Raises:
        DataError: if the target exists or cannot be made, or another process is writing it.
        OSError: naming the disk if it is full.
    """
    target = target.absolute()
    there = DataError(f"{target} exists, and nothing is overwritten; name another folder")
    if os.path.lexists(target):
        raise there
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise DataError(f"{target}: {error.filename} is not a folder; name another one") from error
    partial, lock = (target.with_name(f".{target.name}.{kind}") for kind in ("partial", "lock"))
    with explain_full_disk(target.parent, REMEDY), flock(lock, wait=False) as free:
        if not free:
            raise DataError(f"{target} is being written by another process; name another folder")
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
        partial.mkdir()
        try:
            yield partial
            apply_umask(partial)
            if os.path.lexists(target):  # made meanwhile by something else
                raise there
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def export_artifact(store: Store, artifact: Artifact, folder: Path) -> dict[str, int]:
    """Write an artifact into a folder; return the rows of each file of training data.

    Preference pairs and expansions of training queries are written in the layouts of the paper's
    releases, models as they lie.

    Raises:
        DataError: if it is something else.
    """
    match artifact.stage:
        case "pairs" | "import_pairs":
            return export_pairs(store, artifact, folder)
        case "expand" | "import_expansions":
            examples = _examples_of(store, artifact)
            return _export_examples(store, folder, {"examples": examples, "expansions": artifact})
    if not MODEL_FILES & artifact.files.keys():
        raise DataError(
            f"{artifact.key} cannot be exported; name preference pairs, expansions of training queries, "
            "a language model, an adapter, a retriever, or a run"
        )
    shutil.copytree(
        store.local(artifact),
        folder,
        dirs_exist_ok=True,
        ignore=lambda _, names: {MANIFEST} & {*names},
    )
    return {}


def export_training_data(
    store: Store, llm: Artifact, retriever: Artifact, folder: Path
) -> dict[str, int]:
    """Write what models were trained on last; return the rows of each file.

    llm_training_data and retriever_training_data are the folders; a model that was not trained has none.
    """
    written: dict[str, int] = {}
    adapter = llm if is_adapter(llm) else inputs_of(store, llm).get("adapter")
    trained_on = {
        "llm_training_data": inputs_of(store, adapter) if adapter else {},
        "retriever_training_data": inputs_of(store, retriever),
    }
    for name, inputs in trained_on.items():
        if not {"pairs", "examples"} & inputs.keys():
            continue
        (folder / name).mkdir()
        if "pairs" in inputs:
            rows = export_artifact(store, inputs["pairs"], folder / name)
        else:
            rows = _export_examples(store, folder / name, inputs)
        written |= {f"{name}/{file}": number for file, number in rows.items()}
    return written


def inputs_of(store: Store, artifact: Artifact) -> dict[str, Artifact]:
    """Return what an artifact was made from, by role."""
    inputs: dict[str, Any] = store.manifest(artifact.key).get("inputs", {})
    return {role: Artifact(**each) for role, each in inputs.items()}


def _examples_of(store: Store, expansions: Artifact) -> Artifact:
    """Return the training examples that expansions were written for."""
    inputs = inputs_of(store, expansions)
    if "pseudo_docs" in inputs:
        return inputs["pseudo_docs"].model_copy(update={"path": "retriever.parquet"})
    return inputs["queries"]


def _export_examples(store: Store, folder: Path, inputs: dict[str, Artifact]) -> dict[str, int]:
    """Write examples with their expansions and mined negatives, as far as there are any."""
    expansions = (
        [store.local(shard) for shard in store.shards(inputs["expansions"])]
        if "expansions" in inputs
        else []
    )
    mined = inputs.get("negatives")
    return export_examples(
        file_in(store.local(inputs["examples"]), "retriever.parquet"),
        expansions,
        file_in(store.local(mined), "negatives.parquet") if mined else None,
        folder,
    )
