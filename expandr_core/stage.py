"""Run one stage: find its artifact, or make it.

A stage is a module of `expandr_core.stages` with

    VERSION      raised when the same options give other bytes
    ISOLATION    "always" in a child process, "on-gpu" only where a GPU is used, or "never"
    OPTIONS      the type of its options
    run(job)     read `job.inputs`, write files into `job.out`

As a program (`expandr_core.child` starts it, and so can you):

    python -m expandr_core.stage SPEC.json STORE

It prints one JSON event a line on standard output (log lines, progress, the artifact at last), and
ends with status 65 where the input is at fault, so that nobody retries what cannot succeed.
"""

import contextlib
import ctypes
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expandr_core.artifacts import Artifact, StageSpec
from expandr_core.errors import DataError
from expandr_core.options import Options, identity
from expandr_core.store import Store

log = logging.getLogger(__name__)
BAD_INPUT = 65  # EX_DATAERR of sysexits.h
LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "sentence-transformers",
    "faiss-cpu",
    "pyarrow",
)
Progress = Callable[[int, int, str], None]


@dataclass
class Job:
    """What a stage program works with.

    Attributes:
        spec: what was asked for.
        options: the stage's options, of the module's type OPTIONS.
        inputs: local path of each input artifact (a folder, or the one file referred to).
        out: folder to write the files of the artifact into.
        checkpoints: folder that survives a kill and is deleted at commit.
        store: for stages that read or write shards.
        progress: report (done, total, unit).
        counts: what the manifest shows: rows, rows dropped by reason, measures.
        parts: shards that belong to the artifact.
    """

    spec: StageSpec
    options: Any
    inputs: dict[str, Path]
    out: Path
    checkpoints: Path
    store: Store
    progress: Progress
    counts: dict[str, float] = field(default_factory=dict)
    parts: list[Artifact] = field(default_factory=list)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.spec.seed

    def shards(self, role: str) -> Iterator[Path]:
        """Yield the local folder of each shard of a sharded input, one after the other."""
        for part in self.store.parts(self.spec.inputs[role]):
            yield self.store.local(part)


def make_spec(
    stage: str,
    options: Options,
    inputs: dict[str, Artifact] | None = None,
    *,
    seed: int = 0,
    sources: dict[str, str] | None = None,
    **runtime: Any,
) -> StageSpec:
    """Specify a stage from its typed options; `runtime` adds values that are not in the key."""
    return StageSpec(
        stage=stage,
        version=module_of(stage).VERSION,
        seed=seed,
        options=json.loads(json.dumps(identity(options))),
        runtime={"options": options.model_dump(mode="json"), **runtime},
        inputs=inputs or {},
        sources=sources or {},
    )


def module_of(stage: str) -> Any:
    """Import a stage's module."""
    return importlib.import_module(f"expandr_core.stages.{stage}")


def run_stage(spec: StageSpec, store: Store, progress: Progress) -> Artifact:
    """Make the artifact in this process, unless it is there by now."""
    with store.lock(spec.key) as work:
        found = store.lookup(spec.key)
        if found:
            return found
        out, checkpoints = work / "out", work / "checkpoints"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        checkpoints.mkdir(exist_ok=True)
        module = module_of(spec.stage)
        inputs = {role: store.local(artifact) for role, artifact in spec.inputs.items()}
        options = module.OPTIONS(**spec.runtime["options"])
        job = Job(spec, options, inputs, out, checkpoints, store, progress)
        started = time.monotonic()
        module.run(job)
        artifact = store.commit(
            spec.key, out, job.parts, _provenance(job, time.monotonic() - started)
        )
        shutil.rmtree(work, ignore_errors=True)
        return artifact


def run_shard(
    job: Job, role: str, rows_digest: str, write: Callable[[Path], dict[str, float]]
) -> Artifact:
    """Make one shard of a stage, an artifact of its own, unless it is there; add it to the job.

    Args:
        job: the whole stage's job.
        role: the input that is cut into shards; the shard depends on its rows instead.
        rows_digest: digest of the shard's rows of that input.
        write: writes the shard's files into a folder and returns its counts.
    """
    inputs = {name: value for name, value in job.spec.inputs.items() if name != role}
    spec = StageSpec(
        stage=f"{job.spec.stage}_shard",
        version=job.spec.version,
        seed=job.spec.seed,
        options=job.spec.options,
        runtime=job.spec.runtime,
        inputs=inputs,
        sources={role: rows_digest},
    )
    with job.store.lock(spec.key) as work:
        shard = job.store.lookup(spec.key)
        if not shard:
            out = work / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            started = time.monotonic()
            counts = write(out)
            part = Job(spec, job.options, {}, out, out, job.store, job.progress, counts)
            provenance = _provenance(part, time.monotonic() - started)
            shard = job.store.commit(spec.key, out, [], provenance)
        shutil.rmtree(work, ignore_errors=True)
    job.parts.append(shard)
    return shard


def _provenance(job: Job, seconds: float) -> dict[str, Any]:
    """Tell how an artifact came to be."""
    versions = {}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    spec = job.spec
    return {
        "stage": spec.stage,
        "version": spec.version,
        "seed": spec.seed,
        "options": spec.runtime["options"],
        "runtime": {name: value for name, value in spec.runtime.items() if name != "options"},
        "inputs": {role: artifact.model_dump() for role, artifact in spec.inputs.items()},
        "sources": spec.sources,
        "counts": job.counts,
        "commit": code_commit(),
        "libraries": versions,
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores",
        "seconds": round(seconds, 2),
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


class _JSONLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _say(log=record.getMessage(), level=record.levelno, logger=record.name)


def _say(**event: Any) -> None:
    sys.__stdout__.write(json.dumps(event) + "\n")  # pyright: ignore[reportOptionalMemberAccess]
    sys.__stdout__.flush()  # pyright: ignore[reportOptionalMemberAccess]


def throttled(progress: Progress, seconds: float) -> Progress:
    """Pass on the first and last report, and between them one per interval."""
    last = -seconds

    def report(done: int, total: int, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= seconds:
            last = now
            progress(done, total, unit)

    return report


def main(spec_path: str, store_url: str, scratch: str | None = None) -> int:
    """Run a stage program as a process of its own."""
    if sys.platform == "linux":  # die with the parent: PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    core = logging.getLogger("expandr_core")
    core.setLevel(logging.INFO)
    core.addHandler(_JSONLines())
    core.propagate = False
    sys.stdout = sys.stderr  # libraries that print must not disturb the events
    try:
        spec = StageSpec.model_validate_json(Path(spec_path).read_text())
        report = throttled(lambda *done: _say(progress=done), 0.5)
        artifact = run_stage(spec, Store(store_url, scratch), report)
    except DataError as error:
        _say(bad_input=str(error))
        return BAD_INPUT
    _say(artifact=artifact.model_dump())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
