"""Import a model: check it and copy it into the store, keyed by its content.

A retriever is imported by its family (see `encoders.families`). The specification's `sources` are the
digests that `model_source` returns with the folder.
"""

import shutil
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from expandr_core.encoders.anchordr_checkpoint import add_tokenizer
from expandr_core.encoders.convert_weights import replace_pickles
from expandr_core.encoders.families import import_retriever
from expandr_core.errors import DataError
from expandr_core.generation.check_llm import check_llm
from expandr_core.options.base import Options, runtime
from expandr_core.options.retriever import ConventionOptions, RetrieverOptions, Similarity
from expandr_core.runtime.job import Job
from expandr_core.runtime.model_folders import check_folder, model_files
from expandr_core.store.store import sha256_of

VERSION = 4
ROLE = "data"
ISOLATION = "always"
TOKENIZER = "retriever.tokenizer"  # among the sources
LAYERS = "layers/"  # prefix of the counts of layers that an adapter can adapt


class ImportOptions(Options):
    """A model from elsewhere; all but the first two matter for a retriever."""

    kind: Literal["llm", "retriever"] = Field(description="What the model is for.")
    folder: str = runtime("", description="Local folder of the model.")
    convention: ConventionOptions = ConventionOptions()
    similarity: Similarity = "model"
    allow_pickle_conversion: bool = runtime(False, description="Convert pickled weights.")
    tokenizer: str = runtime("", description="File of AnchorDR's tokenizer, if it lies elsewhere.")

    @classmethod
    def of(cls, options: RetrieverOptions, folder: Path, tokenizer: Path | None = None) -> Self:
        """Import a retriever from a folder, perhaps with a tokenizer from elsewhere."""
        similarity = options.encoding.similarity
        return cls(
            kind="retriever",
            folder=str(folder),
            convention=options.convention,
            similarity=similarity,
            allow_pickle_conversion=options.allow_pickle_conversion,
            tokenizer=str(tokenizer or ""),
        )


OPTIONS = ImportOptions


def run(job: Job) -> None:
    """Copy the model and check the copy, as that is what runs; errors name the original."""
    options: ImportOptions = job.options
    folder, copy = Path(options.folder), job.checkpoints / "model"
    check_folder(folder, options.allow_pickle_conversion)
    shutil.rmtree(copy, ignore_errors=True)  # of a run that was killed
    try:
        if options.kind == "llm":
            _copy(job, folder, job.out)
            layers = check_llm(job.out)
            job.counts |= {f"{LAYERS}{name}": count for name, count in layers.items()}
        else:
            _copy(job, folder, copy)
            if any(path.suffix == ".bin" for path in copy.rglob("*")):
                replace_pickles(copy)
            if options.tokenizer:
                add_tokenizer(copy, Path(options.tokenizer), job.spec.sources.get(TOKENIZER, ""))
            import_retriever(copy, job.out, options.convention, options.similarity)
    except DataError as error:
        message = str(error)
        for path in (copy, job.out):
            message = message.replace(str(path), str(folder))
        raise DataError(message) from error
    files = [path for path in job.out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    job.counts = {"files": len(files), "bytes": size} | job.counts


def _copy(job: Job, folder: Path, out: Path) -> None:
    """Copy the files of a model, and check that they are still those that the key names."""
    options: ImportOptions = job.options
    names = model_files(folder, options.allow_pickle_conversion)
    for done, name in enumerate(names, 1):
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target)
        if sha256_of(target) != job.spec.sources.get(name):
            raise DataError(f"{folder / name} changed during the run; start the run again")
        job.progress(done, len(names), "files")
