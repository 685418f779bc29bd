"""How an artifact came to be: its manifest, without the files.

Nothing of it enters a key or a digest.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expandr_core.store.artifacts import StageSpec
from expandr_core.store.commit import code_commit

LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "trl",
    "peft",
    "accelerate",
    "sentence-transformers",
    "faiss-cpu",
    "faiss-gpu",
    "bm25s",
    "pytrec-eval-terrier",
    "scipy",
    "numpy",
    "pyarrow",
)
DEFAULT_VLLM_PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
_ASK_VLLM = f"""import importlib.metadata as found, json
versions = {{}}
for name in ("vllm", *{LIBRARIES!r}):
    try:
        versions[name] = found.version(name)
    except found.PackageNotFoundError:
        pass
print(json.dumps(versions))"""


class Meter:
    """Measures what a stage uses, from its beginning on."""

    def __init__(self) -> None:
        """Begin."""
        self.started, self.peak_before = time.monotonic(), _peak_memory()
        if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

    def used(self, spec: StageSpec) -> dict[str, Any]:
        """Return seconds, GPUs and peak memory so far.

        The memory is that of the largest process. If the process had needed as much before, this is
        only a limit (`exact` is false).
        """
        peak, gpus = _peak_memory(), _gpu_memory()
        names = [name for name, used in gpus if used] or _gpus_of_others(spec)
        return {
            "seconds": round(time.monotonic() - self.started, 3),
            "gpus": names,
            "peak_memory": {"bytes": peak, "exact": peak > self.peak_before},
            "peak_gpu_memory": [used for _, used in gpus if used],
        }


def provenance(spec: StageSpec, counts: dict[str, float], meter: Meter) -> dict[str, Any]:
    """Return the provenance of an artifact for its manifest."""
    facts = {
        "stage": spec.stage,
        "version": spec.version,
        "seed": spec.seed,
        "options": spec.runtime["options"],
        "runtime": {name: value for name, value in spec.runtime.items() if name != "options"},
        "inputs": {role: artifact.model_dump() for role, artifact in spec.inputs.items()},
        "sources": spec.sources,
        "counts": counts,
        "commit": code_commit(),
        "python": platform.python_version(),
        "libraries": _libraries(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **meter.used(spec),
    }
    if spec.max_shards:
        facts["max_shards"] = spec.max_shards
    if "tokens" in counts:
        facts["tokens"] = counts["tokens"]
    if _writes_with_vllm(spec):
        python = spec.runtime.get("vllm_python") or str(DEFAULT_VLLM_PYTHON)
        facts["vllm_libraries"] = _libraries_of(python)
    return facts


@functools.cache
def _libraries() -> dict[str, str]:
    """Return the versions of the libraries in this interpreter."""
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


@functools.cache
def _libraries_of(python: str) -> dict[str, str]:
    """Return the versions of the libraries in another interpreter; none if it does not answer."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        run = subprocess.run(
            [python, "-c", _ASK_VLLM], capture_output=True, text=True, check=True, timeout=60
        )
        return json.loads(run.stdout)
    return {}


def _writes_with_vllm(spec: StageSpec) -> bool:
    return spec.runtime["options"].get("engine") == "vllm"


def _peak_memory() -> int:
    """Return the peak of this process, or of a child that has ended, in bytes."""
    kilobytes = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return kilobytes * (1 if sys.platform == "darwin" else 1024)


def _gpu_memory() -> list[tuple[str, int]]:
    """Return the name of each GPU, and the peak that this process has allocated on it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [
        (torch.cuda.get_device_name(gpu), torch.cuda.max_memory_allocated(gpu))
        for gpu in range(torch.cuda.device_count())
    ]


def _gpus_of_others(spec: StageSpec) -> list[str]:
    """Return the names of the GPUs that processes started by the stage use: vLLM's or torchrun's."""
    options, torch = spec.runtime["options"], sys.modules.get("torch")
    number = options.get("training", {}).get("processes", 1)
    if _writes_with_vllm(spec):
        settings = options.get("settings", {})
        number = settings.get("tensor_parallel", 1) * settings.get("data_parallel", 1)
    elif number == 1:
        return []
    if torch is None or spec.runtime.get("device") == "cpu":
        return []
    return _gpu_names()[: min(number, torch.cuda.device_count())]


@functools.cache
def _gpu_names() -> list[str]:
    """Return the names of this machine's GPUs, without opening them."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return run.stdout.strip().splitlines()
    return []
