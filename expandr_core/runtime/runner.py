"""Run one stage: find its artifact, or make it.

A stage is a module of `expandr_core.stages` with

    VERSION      raised when the same options produce other bytes
    ROLE         the kind of work, which decides where it runs: "data", "generate", "embed",
                 "measure" or "train"
    ISOLATION    "always" in a child process, "on-gpu" only if a GPU is used, or "never"
    OPTIONS      the type of its options
    run(job)     read `job.inputs`, write files into `job.out`
    shards(job)  sharded stages only: the maximum number of shards

A sharded stage makes each shard an artifact (`run_shard`). Several processes can share the work
(`share_stage`): each makes the shards that no other makes, and a last run finds them all.

As a program (`expandr_core.runtime.child` starts it, and so can you):

    python -m expandr_core.runtime.runner SPEC.json STORE

It prints one JSON event a line on standard output (log lines, progress, finally the artifact), and
exits with status 65 if the input is at fault, so that nobody retries what cannot succeed.
"""

import importlib
import json
import logging
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from expandr_core.errors import DataError
from expandr_core.options.base import Options, identity
from expandr_core.runtime.child_protocol import die_with_parent, emit, end, report_events
from expandr_core.runtime.job import Job, Progress, no_progress
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.claims import Claims, drop_marks, find_marked
from expandr_core.store.filesystems import apply_umask
from expandr_core.store.provenance import Meter, provenance
from expandr_core.store.store import Store

log = logging.getLogger(__name__)
BAD_INPUT = 65  # EX_DATAERR of sysexits.h


class _Inputs(Mapping[str, Path]):
    """The local paths of input artifacts, each downloaded on first access."""

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


class StartTimer:
    """Pass progress on, and measure how long the stage prepares.

    Attributes:
        seconds: until the first report of zero done, when everything is loaded; None if there was
            none, or the work continued from a checkpoint.
    """

    def __init__(self, progress: Progress):
        """Pass on to `progress`."""
        self.progress, self.made = progress, time.monotonic()
        self.seconds: float | None = None

    def __call__(self, done: int, total: int, unit: str) -> None:
        """Report."""
        if not done and self.seconds is None:
            self.seconds = round(time.monotonic() - self.made, 2)
        self.progress(done, total, unit)


def make_spec(
    stage: str,
    options: Options,
    inputs: dict[str, Artifact] | None = None,
    *,
    seed: int = 0,
    sources: dict[str, str] | None = None,
    max_shards: int = 0,
    **runtime: Any,
) -> StageSpec:
    """Specify a stage from its typed options; `runtime` adds values that are not part of the key."""
    return StageSpec(
        stage=stage,
        version=module_of(stage).VERSION,
        seed=seed,
        options=json.loads(json.dumps(identity(options), allow_nan=False)),
        runtime={"options": options.model_dump(mode="json"), **runtime},
        inputs=inputs or {},
        sources=sources or {},
        max_shards=max_shards,
    )


def module_of(stage: str) -> Any:
    """Import a stage's module."""
    return importlib.import_module(f"expandr_core.stages.{stage}")


def run_stage(spec: StageSpec, store: Store, progress: Progress) -> Artifact:
    """Make the artifact in this process, unless it exists by now."""
    with store.lock(spec.key) as work:
        found = find(spec, store)
        if not found:
            meter, progress = Meter(), StartTimer(progress)
            job = _job(spec, store, progress, work)
            job = _run(replace(job, found=_made_together(spec, store)))
            facts = provenance(spec, job.counts, meter)
            facts |= {"start_seconds": progress.seconds}
            apply_umask(job.out)
            found = store.commit(spec.key, job.out, job.made_shards, facts)
            if job.found:
                drop_marks(store, shared_work(spec))
        shutil.rmtree(work, ignore_errors=True)
        return found


def share_stage(spec: StageSpec, store: Store, progress: Progress) -> None:
    """Make shards of a stage in this process, with others that do the same, until all are there."""
    if find(spec, store):  # this run came too late
        return
    name = f"{spec.key}-{secrets.token_hex(4)}"
    with (
        store.lock(name, lease=False) as work,
        Claims(store, shared_work(spec), count_shards(spec, store)) as claims,
    ):
        while claims.one_is_free():
            _run(replace(_job(spec, store, progress, work), claims=claims))
            claims.end_pass()
        shutil.rmtree(work, ignore_errors=True)


def shared_work(spec: StageSpec) -> str:
    """Name the work that the runs of a stage share; see `Claims`."""
    return ".".join([spec.key, only_of(spec)]).strip(".")


def _run(job: Job) -> Job:
    _make_folders(job)
    module_of(job.spec.stage).run(job)
    return job


def count_shards(spec: StageSpec, store: Store) -> int:
    """Return the maximum number of shards that a stage makes; 1 if it is not sharded."""
    module = module_of(spec.stage)
    if not hasattr(module, "shards"):
        return 1
    nowhere = store.scratch / "work" / spec.key  # counting writes nothing
    shards = module.shards(_job(spec, store, no_progress, nowhere))
    return min(shards, spec.max_shards or shards)


def find(spec: StageSpec, store: Store) -> Artifact | None:
    """Look the artifact up; a fresh run accepts only artifacts made for this flow run.

    The run's id decides, not a time: the clocks of other machines may differ.
    """
    return store.lookup(spec.key, only_of(spec))


def _made_together(spec: StageSpec, store: Store) -> dict[str, Artifact]:
    """Return the shards that runs have made together, by key."""
    sharded = hasattr(module_of(spec.stage), "shards")
    return find_marked(store, shared_work(spec), only_of(spec)) if sharded else {}


def only_of(spec: StageSpec) -> str:
    """Return the id of the one flow run whose artifacts are accepted; empty if all are."""
    return spec.runtime["prefect_flow_run"] if spec.runtime.get("fresh") else ""


def _job(spec: StageSpec, store: Store, progress: Progress, work: Path) -> Job:
    options = module_of(spec.stage).OPTIONS(**spec.runtime["options"])
    inputs = _Inputs(store, spec.inputs)
    return Job(spec, options, inputs, work / "out", work / "checkpoints", store, progress)


def _make_folders(job: Job) -> None:
    shutil.rmtree(job.out, ignore_errors=True)
    job.out.mkdir()
    job.checkpoints.mkdir(exist_ok=True)


def run_shard(
    job: Job, number: int, sources: dict[str, str], write: Callable[[Path], dict[str, float]]
) -> Artifact:
    """Make one shard of a stage as an artifact, unless it exists; add it to the job.

    Args:
        job: the whole stage's job.
        number: of the shard, one that the job takes.
        sources: digest of this shard's rows of each input that is cut into shards; the shard
            depends on these instead of the whole inputs.
        write: writes the shard's files into a folder and returns its counts.
    """
    spec = StageSpec(
        stage=f"{job.spec.stage}_shard",
        version=job.spec.version,
        seed=job.spec.seed,
        options=job.spec.options,
        runtime=job.spec.runtime,
        inputs={role: value for role, value in job.spec.inputs.items() if role not in sources},
        sources=sources,
    )
    shard = job.found.get(spec.key) or find(spec, job.store)
    if shard:  # a kill right after a commit leaves the work folder behind
        shutil.rmtree(job.store.scratch / "work" / spec.key, ignore_errors=True)
    else:
        shard = _make_shard(job, spec, write)
    if job.claims:
        job.claims.made(number, shard)
    job.made_shards.append(shard)
    return shard


def _make_shard(job: Job, spec: StageSpec, write: Callable[[Path], dict[str, float]]) -> Artifact:
    with job.store.lock(spec.key, lease=False) as work:  # the stage has a lease, or the run a claim
        shard = find(spec, job.store)
        if not shard:
            out = work / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            meter = Meter()
            counts = write(out)
            facts = provenance(spec, counts, meter)
            shard = job.store.commit(spec.key, out, [], facts)
        shutil.rmtree(work, ignore_errors=True)
        return shard


def main(
    spec_path: str, store_url: str, scratch: str | None = None, cache_bytes: str | None = None
) -> int:
    """Run a stage program in a process of its own."""
    die_with_parent()
    report = report_events()
    try:
        spec = StageSpec.model_validate_json(Path(spec_path).read_text())
        store = Store(store_url, scratch, int(cache_bytes) if cache_bytes else None)
        artifact = run_stage(spec, store, report)
    except (DataError, ValidationError) as error:  # no retry would make the input valid
        emit(error=str(error))
        return BAD_INPUT
    except OSError as error:  # what a library prints while the process ends may hide it
        emit(error=str(error))
        raise
    emit(artifact=artifact.model_dump())
    return 0


if __name__ == "__main__":
    end(main(*sys.argv[1:]))
