"""Import: check a model from elsewhere and copy it into the store, keyed by its content.

The specification's `sources` are the digests that `models.model_source` returns with the folder.
"""

import shutil
from pathlib import Path
from typing import Literal

from pydantic import Field

from expandr_core import models
from expandr_core.errors import DataError
from expandr_core.options import Options, runtime
from expandr_core.stage import Job
from expandr_core.store import sha256_of

VERSION = 1
ROLE = "data"
ISOLATION = "always"


class ImportOptions(Options):
    """A model from elsewhere."""

    kind: Literal["llm", "retriever"] = Field(description="What the model is for.")
    folder: str = runtime("", description="Local folder of the model.")


OPTIONS = ImportOptions


def run(job: Job) -> None:
    """Check the model, then copy its files."""
    options: ImportOptions = job.options
    folder = Path(options.folder)
    models.check_folder(folder)
    if options.kind == "llm":
        models.check_llm(folder)
    names = models.model_files(folder)
    for done, name in enumerate(names, 1):
        target = job.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target)
        if sha256_of(target) != job.spec.sources.get(name):
            raise DataError(f"{folder / name} was changed during the run; start the run again")
        job.progress(done, len(names), "files")
    if options.kind == "retriever":
        _check_copy(folder, job.out)
    job.counts["files"] = len(names)
    job.counts["bytes"] = sum((job.out / name).stat().st_size for name in names)


def _check_copy(folder: Path, copy: Path) -> None:
    """Check the copy, as it holds only files that may be loaded; speak of the original."""
    try:
        models.check_retriever(copy)
    except DataError as error:
        raise DataError(str(error).replace(str(copy), str(folder))) from error
