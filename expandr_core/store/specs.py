"""Specifications of stages on their way to a worker, one JSON file each.

A file is named after the artifact's key and its own content, because two runs can ask for the same
artifact with different settings that change no byte. The next run that asks for it writes it again.
"""

import hashlib

from expandr_core.errors import DataError
from expandr_core.store.artifacts import StageSpec
from expandr_core.store.run_records import read_record, write_record
from expandr_core.store.store import Store

SPECS = "specs"


def write_spec(store: Store, spec: StageSpec) -> str:
    """Write a specification; return its name."""
    content = spec.model_dump(mode="json")
    name = f"{spec.key}.{hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:12]}"
    write_record(store.filesystem, f"{store.root}/{SPECS}", name, content)
    return name


def read_spec(store: Store, name: str) -> StageSpec:
    """Read a specification.

    Raises:
        DataError: if it is gone, or was changed.
    """
    try:
        spec = StageSpec(**read_record(store.filesystem, f"{store.root}/{SPECS}", name))
    except FileNotFoundError as error:
        raise DataError(
            f"{SPECS}/{name}.json is not in {store.url}: this run is old, and `expandr gc` has removed "
            "what it was to make; retry the run that started it, which starts another"
        ) from error
    if spec.key != name.partition(".")[0]:
        raise DataError(f"{store.url}/{SPECS}/{name}.json specifies {spec.key}; delete the file, and "
                        "retry the run that started this one")  # fmt: skip
    return spec
