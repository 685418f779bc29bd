"""Export an artifact, or the models of a run and what they were trained on, into a new folder."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expandr_core.data.tables import file_in
from expandr_core.errors import DataError
from expandr_core.exports.training_data import export_examples, export_pairs
from expandr_core.store.artifacts import Artifact
from expandr_core.store.manifests import MANIFEST
from expandr_core.store.store import Store

MODEL_FILES = {"config.json", "modules.json", "adapter_config.json"}  # one of them is in its folder


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to write to, which becomes the target if nothing fails.

    Raises:
        DataError: if the target exists.
    """
    if target.exists():
        raise DataError(f"{target} exists, and nothing is overwritten; name another folder")
    partial = target.absolute().with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
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


def export_models(store: Store, llm: Artifact, retriever: Artifact, folder: Path) -> dict[str, int]:
    """Write models, and what each was trained on last; return the rows of the training data.

    llm, llm_training_data, retriever, retriever_training_data are the folders; a model that was not
    trained has no training data.
    """
    written: dict[str, int] = {}

    def below(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    for role, model in (("llm", llm), ("retriever", retriever)):
        export_artifact(store, model, below(role))
    separate = "adapter_config.json" in llm.files
    adapter = llm if separate else _inputs(store, llm).get("adapter")
    trained_on = {
        "llm_training_data": _inputs(store, adapter) if adapter else {},
        "retriever_training_data": _inputs(store, retriever),
    }
    for name, inputs in trained_on.items():
        rows = {}
        if "pairs" in inputs:
            rows = export_artifact(store, inputs["pairs"], below(name))
        elif "examples" in inputs:
            rows = _export_examples(store, below(name), inputs)
        written |= {f"{name}/{file}": number for file, number in rows.items()}
    return written


def _inputs(store: Store, artifact: Artifact) -> dict[str, Artifact]:
    """Return what an artifact was made from, by role."""
    inputs: dict[str, Any] = store.manifest(artifact.key).get("inputs", {})
    return {role: Artifact(**each) for role, each in inputs.items()}


def _examples_of(store: Store, expansions: Artifact) -> Artifact:
    """Return the training examples that expansions were written for."""
    inputs = _inputs(store, expansions)
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
