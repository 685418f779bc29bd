"""Run one stage: find its artifact, or make it.

A stage is a module of `expandr_core.stages` with

    VERSION      raised when the same options give other bytes
    ROLE         what it is good for: "data", "generate", "embed", "measure" or "train"; says where
    ISOLATION    "always" in a child process, "on-gpu" only where a GPU is used, or "never"
    OPTIONS      the type of its options
    run(job)     read `job.inputs`, write files into `job.out`
    shards(job)  only of a sharded stage: how many shards it makes, at most

A sharded stage makes each shard an artifact of its own (`run_shard`). Several processes can make them:
each runs the stage with another `part`, and the last one, without a part, finds them all.

As a program (`expandr_core.runtime.child` starts it, and so can you):

    python -m expandr_core.runtime.runner SPEC.json STORE

It prints one JSON event a line on standard output (log lines, progress, the artifact at last), and
ends with status 65 where the input is at fault, so that nobody retries what cannot succeed.
"""

import contextlib
import importlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from expandr_core.errors import DataError
from expandr_core.options.base import Options, identity
from expandr_core.runtime.child_protocol import (
    Beginning,
    Progress,
    die_with_parent,
    report_events,
    say,
)
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.provenance import provenance
from expandr_core.store.store import Store

log = logging.getLogger(__name__)
BAD_INPUT = 65  # EX_DATAERR of sysexits.h


@dataclass
class Job:
    """What a stage program works with.

    Attributes:
        spec: what was asked for.
        options: the stage's options, of the module's type OPTIONS.
        inputs: local path of each input artifact (a folder, or the one file referred to); it is
            fetched when it is first asked for.
        out: folder to write the files of the artifact into.
        checkpoints: folder that survives a kill and is deleted at commit.
        store: for stages that read or write shards.
        progress: report (done, total, unit).
        counts: what the manifest shows: rows, rows dropped by reason, measures.
        parts: shards that belong to the artifact.
        part: (i, n) to make only the shards whose number leaves i when divided by n; else None.
    """

    spec: StageSpec
    options: Any
    inputs: Mapping[str, Path]
    out: Path
    checkpoints: Path
    store: Store
    progress: Progress
    counts: dict[str, float] = field(default_factory=dict)
    parts: list[Artifact] = field(default_factory=list)
    part: tuple[int, int] | None = None

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.spec.seed

    def takes(self, number: int) -> bool:
        """Tell whether this job makes the shard of that number."""
        if 0 < self.spec.first_shards <= number:
            return False
        return self.part is None or number % self.part[1] == self.part[0]

    def shards(self, role: str) -> Iterator[Path]:
        """Yield the local folder of each shard of a sharded input, one after the other."""
        for part in self.store.parts(self.spec.inputs[role]):
            yield self.store.local(part)
            self.store.release(part)

    @contextlib.contextmanager
    def all_shards(self, role: str) -> Iterator[list[Path]]:
        """Hold the local folders of all shards of a sharded input, to read them more than once."""
        with contextlib.ExitStack() as held:
            folders = []
            for part in self.store.parts(self.spec.inputs[role]):
                folders.append(self.store.local(part))
                held.callback(self.store.release, part)
            yield folders


class _Inputs(Mapping[str, Path]):
    """The local paths of input artifacts, each fetched when it is asked for."""

    def __init__(self, store: Store, artifacts: dict[str, Artifact]):
        self._store, self._artifacts = store, artifacts
        self._paths: dict[str, Path] = {}

    def __getitem__(self, role: str) -> Path:
        if role not in self._paths:
            self._paths[role] = self._store.local(self._artifacts[role])
        return self._paths[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._artifacts)

    def __len__(self) -> int:
        return len(self._artifacts)


def make_spec(
    stage: str,
    options: Options,
    inputs: dict[str, Artifact] | None = None,
    *,
    seed: int = 0,
    sources: dict[str, str] | None = None,
    first_shards: int = 0,
    **runtime: Any,
) -> StageSpec:
    """Specify a stage from its typed options; `runtime` adds values that are not in the key."""
    return StageSpec(
        stage=stage,
        version=module_of(stage).VERSION,
        seed=seed,
        options=json.loads(json.dumps(identity(options), allow_nan=False)),
        runtime={"options": options.model_dump(mode="json"), **runtime},
        inputs=inputs or {},
        sources=sources or {},
        first_shards=first_shards,
    )


def module_of(stage: str) -> Any:
    """Import a stage's module."""
    return importlib.import_module(f"expandr_core.stages.{stage}")


def run_stage(spec: StageSpec, store: Store, progress: Progress) -> Artifact:
    """Make the artifact in this process, unless it is there by now."""
    with store.lock(spec.key) as work:
        found = find(spec, store)
        if found:
            shutil.rmtree(work, ignore_errors=True)  # a kill right after the commit leaves it
            return found
        started, progress = time.monotonic(), Beginning(progress)
        job = _job(spec, store, progress, work)
        _make_folders(job)
        module_of(spec.stage).run(job)
        story = provenance(spec, job.counts, time.monotonic() - started)
        story |= {"start_seconds": progress.seconds}
        _as_the_umask_says(job.out)
        artifact = store.commit(spec.key, job.out, job.parts, story)
        shutil.rmtree(work, ignore_errors=True)
        return artifact


def run_part(spec: StageSpec, store: Store, progress: Progress, part: tuple[int, int]) -> None:
    """Make only a part of a sharded stage's shards in this process; `part` is that of `Job`."""
    key = f"{spec.key}-part-{part[0]}-of-{part[1]}"
    with store.lock(key) as work:
        job = _job(spec, store, progress, work, part)
        _make_folders(job)
        module_of(spec.stage).run(job)
        shutil.rmtree(work, ignore_errors=True)


def count_shards(spec: StageSpec, store: Store) -> int:
    """Return how many shards a stage makes, at most; 1 if it is not sharded."""
    module = module_of(spec.stage)
    if not hasattr(module, "shards"):
        return 1
    nowhere = store.scratch / "work" / spec.key  # a shard count writes nothing
    shards = module.shards(_job(spec, store, lambda done, total, unit: None, nowhere))
    return min(shards, spec.first_shards or shards)


def find(spec: StageSpec, store: Store) -> Artifact | None:
    """Look the artifact up; in a fresh run, only what was made for this run counts.

    That is told by the run's id, and not by times, which are those of other machines' clocks.
    """
    return store.lookup(spec.key, only_of(spec))


def only_of(spec: StageSpec) -> str:
    """Return the id of the flow run whose artifacts alone count; empty if all do."""
    return spec.runtime["prefect_flow_run"] if spec.runtime.get("fresh") else ""


def _job(
    spec: StageSpec,
    store: Store,
    progress: Progress,
    work: Path,
    part: tuple[int, int] | None = None,
) -> Job:
    options = module_of(spec.stage).OPTIONS(**spec.runtime["options"])
    inputs = _Inputs(store, spec.inputs)
    out, checkpoints = work / "out", work / "checkpoints"
    return Job(spec, options, inputs, out, checkpoints, store, progress, part=part)


def _make_folders(job: Job) -> None:
    shutil.rmtree(job.out, ignore_errors=True)
    job.out.mkdir()
    job.checkpoints.mkdir(exist_ok=True)


def _as_the_umask_says(out: Path) -> None:
    """Give files the access that a new folder has; safetensors writes its own for the owner alone."""
    access = out.stat().st_mode & 0o666
    for path in out.rglob("*"):
        if path.is_file():
            path.chmod(access)


def run_shard(
    job: Job, sources: dict[str, str], write: Callable[[Path], dict[str, float]]
) -> Artifact:
    """Make one shard of a stage, an artifact of its own, unless it is there; add it to the job.

    Args:
        job: the whole stage's job.
        sources: the inputs that are cut into shards, with the digest of this shard's share; the shard
            depends on that instead of the whole input.
        write: writes the shard's files into a folder and returns its counts.
    """
    inputs = {name: value for name, value in job.spec.inputs.items() if name not in sources}
    spec = StageSpec(
        stage=f"{job.spec.stage}_shard",
        version=job.spec.version,
        seed=job.spec.seed,
        options=job.spec.options,
        runtime=job.spec.runtime,
        inputs=inputs,
        sources=sources,
    )
    shard = find(spec, job.store)
    if shard:  # a kill right after a commit leaves its work
        shutil.rmtree(job.store.scratch / "work" / spec.key, ignore_errors=True)
    else:
        shard = _make_shard(job, spec, write)
    job.parts.append(shard)
    return shard


def _make_shard(job: Job, spec: StageSpec, write: Callable[[Path], dict[str, float]]) -> Artifact:
    with job.store.lock(spec.key, lease=False) as work:  # the part, or the stage, has one
        shard = find(spec, job.store)
        if not shard:
            out = work / "out"
            part = Job(spec, job.options, {}, out, out, job.store, job.progress)
            _make_folders(part)
            started = time.monotonic()
            counts = write(part.out)
            story = provenance(spec, counts, time.monotonic() - started)
            shard = job.store.commit(spec.key, part.out, [], story)
        shutil.rmtree(work, ignore_errors=True)
        return shard


def main(
    spec_path: str, store_url: str, scratch: str | None = None, cache_bytes: str | None = None
) -> int:
    """Run a stage program as a process of its own."""
    die_with_parent()
    report = report_events()
    try:
        spec = StageSpec.model_validate_json(Path(spec_path).read_text())
        store = Store(store_url, scratch, int(cache_bytes) if cache_bytes else None)
        artifact = run_stage(spec, store, report)
    except (DataError, ValidationError) as error:  # what is not understood now will not be later
        say(bad_input=str(error))
        return BAD_INPUT
    say(artifact=artifact.model_dump())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
