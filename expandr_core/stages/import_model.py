"""Import: check a model from elsewhere and copy it into the store, keyed by its content.

A retriever's copy says by itself how it is used (see `sentence_models`), whatever it was before. The
specification's `sources` are the digests that `model_source` returns with the folder.
"""

import shutil
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from expandr_core.errors import DataError
from expandr_core.options.base import Options, runtime
from expandr_core.options.retriever import ConventionOptions, RetrieverOptions, Similarity
from expandr_core.runtime.job import Job
from expandr_core.runtime.model_folders import check_folder, model_files
from expandr_core.store.store import sha256_of

VERSION = 3
ROLE = "data"
ISOLATION = "always"
LAYERS = "layers/"  # what counts of layers that an adapter can adapt begin with


class ImportOptions(Options):
    """A model from elsewhere; all but the first two matter for a retriever."""

    kind: Literal["llm", "retriever"] = Field(description="What the model is for.")
    folder: str = runtime("", description="Local folder of the model.")
    convention: ConventionOptions = ConventionOptions()
    similarity: Similarity = "model"

    @classmethod
    def of(cls, options: RetrieverOptions, folder: Path) -> Self:
        """Import a retriever from a folder."""
        similarity = options.encoding.similarity
        return cls(
            kind="retriever",
            folder=str(folder),
            convention=options.convention,
            similarity=similarity,
        )


OPTIONS = ImportOptions


def run(job: Job) -> None:
    """Copy the files of the model, and check the copy, as that is what runs; speak of the original."""
    options: ImportOptions = job.options
    folder = Path(options.folder)
    check_folder(folder)
    try:
        if options.kind == "llm":
            _copy(job, folder)
            from expandr_core.generation.check_llm import check_llm

            layers = check_llm(job.out)
            job.counts |= {f"{LAYERS}{name}": count for name, count in layers.items()}
        else:
            _import_retriever(job, options, folder)
    except DataError as error:
        raise DataError(str(error).replace(str(job.out), str(folder))) from error
    files = [path for path in job.out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    job.counts = {"files": len(files), "bytes": size} | job.counts


def _copy(job: Job, folder: Path) -> None:
    names = model_files(folder)
    for done, name in enumerate(names, 1):
        target = job.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target)
        _check_digest(job, folder / name, target, name)
        job.progress(done, len(names), "files")


def _check_digest(job: Job, original: Path, copy: Path, name: str) -> None:
    if sha256_of(copy) != job.spec.sources.get(name):
        raise DataError(f"{original} was changed during the run; start the run again")


def _import_retriever(job: Job, options: ImportOptions, folder: Path) -> None:
    """Write a complete sentence-transformers model, and check it."""
    from expandr_core.encoders.anchordr_checkpoint import is_published_anchordr
    from expandr_core.encoders.check import check_retriever
    from expandr_core.encoders.sentence_transformer import complete, save_anchordr

    convention = options.convention
    prompts = {"query": convention.query_prompt, "document": convention.passage_prompt}
    if is_published_anchordr(folder):
        save_anchordr(folder, job.out, convention.name)
        for name in model_files(folder):
            _check_digest(job, folder / name, folder / name, name)
        complete(job.out, "model", "model", prompts)
    else:
        _copy(job, folder)
        complete(job.out, convention.name, options.similarity, prompts)
    check_retriever(job.out, options.similarity)
