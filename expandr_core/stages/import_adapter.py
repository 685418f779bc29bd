"""Import a LoRA adapter for a language model: check it against the model, and copy it into the store.

Input: `llm`, the model that it adapts. Writes adapter_model.safetensors as it is, and an
adapter_config.json with the settings that count. The specification's `sources` are the digests that
`adapter_source` returns with the folder.
"""

import shutil
from pathlib import Path

from expandr_core.errors import DataError
from expandr_core.generation.adapters import WEIGHTS, write_config
from expandr_core.generation.check_adapter import check_adapter
from expandr_core.options.base import Options, runtime
from expandr_core.runtime.job import Job
from expandr_core.stages.import_model import LAYERS
from expandr_core.store.store import sha256_of

VERSION = 1
ROLE = "data"
ISOLATION = "always"


class ImportAdapterOptions(Options):
    """An adapter from elsewhere."""

    folder: str = runtime("", description="Local folder of the adapter.")


OPTIONS = ImportAdapterOptions


def run(job: Job) -> None:
    """Check the adapter and that its files are still those that the key names; copy it."""
    options: ImportAdapterOptions = job.options
    folder = Path(options.folder)
    config, layers = check_adapter(folder, job.inputs["llm"])
    shutil.copyfile(folder / WEIGHTS, job.out / WEIGHTS)
    copies = {name: folder / name for name in job.spec.sources} | {WEIGHTS: job.out / WEIGHTS}
    for name, path in copies.items():
        if not path.is_file() or sha256_of(path) != job.spec.sources[name]:
            raise DataError(f"{folder / name} changed during the run; start the run again")
    write_config(job.out, **config, base_model_name_or_path=job.spec.inputs["llm"].key)
    size = (job.out / WEIGHTS).stat().st_size
    job.counts = {"rank": config["r"], "alpha": config["lora_alpha"], "bytes": size}
    job.counts |= {f"{LAYERS}{name}": count for name, count in layers.items()}
