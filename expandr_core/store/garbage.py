"""Garbage collection: what no kept run needs, and what dead work left behind.

Kept are artifacts that a kept run used or that are younger than the limit, and their whole lineage
(inputs and shards, up to the data); also the artifacts of unfinished runs that were active since the
limit or may still be running a step. Kept runs include those of registered models that an alias names
or can be rolled back to. A record, note or model that cannot be understood stops everything.
"""

import contextlib
import functools
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from expandr_core.store.download_cache import last_change, size_of
from expandr_core.store.filesystems import PARTIAL, Files, files_below, flock
from expandr_core.store.manifests import MANIFEST, DamagedArtifact, is_key
from expandr_core.store.registry import MODELS, kept
from expandr_core.store.run_records import NOTES, REPORTS, keys_in, needs_of, read_record
from expandr_core.store.specs import SPECS
from expandr_core.store.store import Store

log = logging.getLogger(__name__)
_AT_ONCE = 32
_LONGEST_STEP = timedelta(hours=48)  # the time limit of a step; see tasks/stage.py
_Listed = tuple[tuple[str, tuple[int, datetime]], ...]


@dataclass(frozen=True)
class Garbage:
    """Something that nobody needs.

    Attributes:
        kind: for people to read.
        size: in bytes.
        changed: time of the last change.
        remove: removes it unless it has come into use; returns whether it is gone.
    """

    kind: str
    name: str
    size: int
    changed: datetime
    remove: Callable[[], bool] = field(repr=False)


def find_garbage(store: Store, keep_runs: int | None, before: datetime) -> list[Garbage]:
    """Return the garbage, in the order in which to remove it.

    Args:
        store: where to look; the only scratch folder seen is this machine's.
        keep_runs: how many of the latest runs to keep; None for all.
        before: keep everything changed later.

    Raises:
        DataError: if a run's record cannot be read, so its needs are unknown.
    """
    runs = _list(store, "runs")
    names = sorted(path.removesuffix(".json") for path in runs if path.endswith(".json"))
    latest = names if keep_runs is None else names[len(names) - min(keep_runs, len(names)) :]
    served, needed = kept(store)
    young = {name for name in names if runs[f"{name}.json"][1] >= before}
    stay = (young | served | {*latest}) & {*names}
    artifacts = _folders(store, "artifacts")
    needed |= {key for name in stay for key in _needs(store, "runs", name)[0]}
    notes = _list(store, NOTES)
    noted = _noted(store, notes, before)
    manifests = {key: files[MANIFEST] for key, files in artifacts.items() if MANIFEST in files}
    needed |= {key for key, (_, changed) in manifests.items() if changed >= before}
    needed = _with_lineage(store, needed.union(*noted.values()))
    found = [
        Garbage("run", path, *runs[path], partial(_remove_run, store, f"runs/{path}"))
        for path in (f"{name}.json" for name in names if name not in stay)
    ]
    found += [
        Garbage("run that did not end", path, *notes[path], _remover(store, NOTES, path))
        for path in notes
        if notes[path][1] < before and path not in noted
    ]
    unneeded = _artifacts(store, artifacts, needed, before)
    found += sorted(unneeded, key=lambda each: each.changed)[::-1]
    found += [*_reports(store, stay, before), *_rest(store, before)]
    return found + list(_scratch(store, before, needed))


def _remove_run(store: Store, path: str) -> bool:
    """Remove the record or the report of a run unless it has been promoted meanwhile."""
    if Path(path).stem in kept(store)[0]:
        return False
    store.filesystem.rm(f"{store.root}/{path}", recursive=True)
    return True


def _reports(store: Store, stay: set[str], before: datetime) -> Iterator[Garbage]:
    """Yield the reports of runs that go, or are gone; the index beside them is no folder."""
    for run, files in _folders(store, REPORTS).items():
        facts = sum(size for size, _ in files.values()), max(time for _, time in files.values())
        if run not in stay and "" not in files and facts[1] < before:
            yield Garbage("report", run, *facts, partial(_remove_run, store, f"{REPORTS}/{run}"))


def remove_garbage(found: list[Garbage]) -> list[str]:
    """Remove garbage in parallel; return for each why it is still there, or ""."""

    def remove(each: Garbage) -> str:
        try:
            return "" if each.remove() else "in use, or rebuilt meanwhile"
        except FileNotFoundError:  # someone else removed it
            return ""
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(remove, found))


def _list(store: Store, folder: str) -> Files:
    """Return all files below a folder of the store; none if it is missing."""
    return files_below(store.filesystem, f"{store.root}/{folder}")


def _folders(store: Store, folder: str) -> dict[str, Files]:
    """Return the files of each folder in one of the store's; a file beside them has the path ""."""
    found: dict[str, Files] = {}
    for path, facts in _list(store, folder).items():
        name, _, rest = path.partition("/")
        found.setdefault(name, {})[rest] = facts
    return found


def _needs(store: Store, folder: str, name: str) -> tuple[set[str], str]:
    """Return the keys in a valid record or note, and its state."""
    record = read_record(store.filesystem, f"{store.root}/{folder}", name)
    needs_of(record, f"{store.root}/{folder}/{name}.json")
    return set(keys_in(record)), str(record.get("state", ""))


def _noted(store: Store, notes: Files, before: datetime) -> dict[str, set[str]]:
    """Return, by note, the keys of runs active since `before` or perhaps still running a step."""
    may_run = datetime.now(UTC) - _LONGEST_STEP
    found = {}
    for path, (_, changed) in notes.items():
        if path.startswith(".") or not path.endswith(".json") or changed < min(before, may_run):
            continue
        name = path.removesuffix(".json")
        with contextlib.suppress(FileNotFoundError):  # it now has a record
            needs, state = _needs(store, NOTES, name)
            if changed >= before or state not in ("failed", "interrupted"):
                found[path] = needs
    return found


@functools.lru_cache(maxsize=1)
def _found_since(store: Store, notes: _Listed, models: _Listed, before: datetime) -> set[str]:
    """Return what runs active during this collection and models promoted meanwhile need, with lineage.

    `models` says when the answer changes.
    """
    noted = _noted(store, dict(notes), before)
    return _with_lineage(store, kept(store)[1].union(*noted.values()))


def _with_lineage(store: Store, keys: Iterable[str]) -> set[str]:
    """Add the inputs and shards of artifacts, recursively."""

    def below(key: str) -> list[str]:
        try:
            manifest = store.manifest(key)
        except FileNotFoundError:
            return []
        except DamagedArtifact as damage:
            log.warning("%s; its inputs are kept only if others need them", damage)
            return []
        return list(keys_in(manifest))

    found, new = set(), set(keys)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while new:
            found |= new
            new = {key for keys in pool.map(below, new) for key in keys} - found
    return found


def _artifacts(
    store: Store, artifacts: dict[str, Files], needed: set[str], before: datetime
) -> Iterator[Garbage]:
    for key, files in artifacts.items():
        if not is_key(key) and not (key.startswith(".") and "" not in files):
            continue  # not ours
        size = sum(bytes_ for bytes_, _ in files.values())
        changed = max(time for _, time in files.values())
        remove = partial(_remove_artifact, store, key, MANIFEST in files, before)
        if MANIFEST not in files:
            if changed < before:
                yield Garbage("unfinished artifact", key, size, changed, remove)
        elif key not in needed:
            yield Garbage("artifact", key, size, files[MANIFEST][1], remove)
        elif not store.is_local:
            yield from _replaced(store, key, files, before)


def _remove_artifact(store: Store, key: str, finished: bool, before: datetime) -> bool:
    """Remove an artifact unless it is in use or has been built or rebuilt meanwhile."""
    notes, models = (tuple(sorted(_list(store, each).items())) for each in (NOTES, MODELS))
    if (notes or models) and key in _found_since(store, notes, models, before):
        return False
    with flock(store.scratch / "locks" / key, wait=False) as free:
        files = _list(store, f"artifacts/{key}")
        if (
            not free
            or (MANIFEST in files) != finished
            or any(time >= before for _, time in files.values())
        ):
            return False
        if is_key(key):
            store.remove(key)
        else:  # what a kill left beside them
            store.filesystem.rm(f"{store.root}/artifacts/{key}", recursive=True)
        return True


def _replaced(store: Store, key: str, files: Files, before: datetime) -> Iterator[Garbage]:
    """Yield the superseded files of an artifact that was rebuilt with other bytes."""
    if len({path.partition("/")[0] for path in files}) <= 2:  # manifest and one folder
        return
    with contextlib.suppress(FileNotFoundError, DamagedArtifact):
        folder = store.manifest(key)["digest"][:12]
        for path, (size, changed) in files.items():
            if path != MANIFEST and not path.startswith(f"{folder}/") and changed < before:
                name = f"{key}/{path}"
                yield Garbage(
                    "replaced file", name, size, changed, _remover(store, "artifacts", name)
                )


def _remover(store: Store, folder: str, name: str) -> Callable[[], bool]:
    return partial(_done, store.filesystem.rm_file, f"{store.root}/{folder}/{name}")


def _done(call: Callable[..., object], *arguments: Any) -> bool:
    """Call a function that raises on failure; return True."""
    call(*arguments)
    return True


def _rest(store: Store, before: datetime) -> Iterator[Garbage]:
    """Yield leases, specifications that no run waits for, and what kills left half-written."""
    unused = min(before, datetime.now(UTC) - _LONGEST_STEP)
    for folder, kind, limit in (("locks", "lease", before), (SPECS, "specification", unused)):
        for path, (size, changed) in _list(store, folder).items():
            if changed < limit:
                yield Garbage(kind, path, size, changed, _remover(store, folder, path))
    for folder in ("runs", MODELS, REPORTS):
        for path, (size, changed) in _list(store, folder).items():
            if PARTIAL in path and changed < before:
                yield Garbage("part of a file", path, size, changed, _remover(store, folder, path))
    if store.is_local:
        return
    filesystem: Any = store.filesystem
    bucket, _, prefix = store.root.partition("/")
    for upload in filesystem.list_multipart_uploads(bucket):
        path, started = upload["Key"], upload["Initiated"]
        if f"{bucket}/{path}".startswith(f"{store.root}/") and started < before:
            name = path.removeprefix(f"{prefix}/")
            remove = partial(_done, filesystem.abort_mpu, bucket, path, upload["UploadId"])
            yield Garbage("parts of a file", name, 0, started, remove)


def _scratch(store: Store, before: datetime, needed: set[str]) -> Iterator[Garbage]:
    """Yield abandoned work on this machine, curves of what goes, and downloads not used lately."""
    kinds = [("work", "unfinished work", partial(_remove_work, store)),
             ("tensorboard", "curves of a training", partial(_done, shutil.rmtree))]  # fmt: skip
    for folder, kind, remove in kinds:
        for path in sorted((store.scratch / folder).glob("*")):
            changed = datetime.fromtimestamp(last_change(path), UTC)
            if changed < before and (folder == "work" or path.name not in needed):
                yield Garbage(kind, path.name, size_of(path), changed, partial(remove, path))
    if store.is_local:
        return
    for path in sorted(path for path in store.cache.folder.glob("*") if path.is_dir()):
        used = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        if used < before:
            remove = partial(store.cache.remove, path.name)
            yield Garbage("download", path.name, size_of(path), used, remove)


def _remove_work(store: Store, path: Path) -> bool:
    """Remove the work on a key unless a process on this machine holds the key."""
    with flock(store.scratch / "locks" / path.name, wait=False) as free:
        if free:
            shutil.rmtree(path)
        return free
