"""How an artifact came to be: its manifest, without the files."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expandr_core.store.artifacts import StageSpec

LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "sentence-transformers",
    "faiss-cpu",
    "pyarrow",
)


def provenance(spec: StageSpec, counts: dict[str, float], seconds: float) -> dict[str, Any]:
    """Return the provenance of an artifact for its manifest."""
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return {
        "stage": spec.stage,
        "version": spec.version,
        "seed": spec.seed,
        "options": spec.runtime["options"],
        "runtime": {name: value for name, value in spec.runtime.items() if name != "options"},
        "inputs": {role: artifact.model_dump() for role, artifact in spec.inputs.items()},
        "sources": spec.sources,
        "counts": counts,
        "commit": code_commit(),
        "libraries": versions,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "seconds": round(seconds, 3),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def code_commit() -> str:
    """Return the commit of this source tree; empty if it is not a git checkout."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    return ""
