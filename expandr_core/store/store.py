"""The artifact store: a local folder or an `s3://` prefix, through fsspec.

Artifacts are written to a scratch folder first. A local store renames the finished folder into place;
on S3 the files are uploaded, the manifest last. A folder without a manifest does not count, so a kill
never leaves anything that looks like an artifact.

On S3 the files lie in a folder named by their digest. Rebuilding an artifact therefore never disturbs
its readers: identical files keep their objects, and new ones are written alongside until `expandr gc`
removes the old. The manifest decides which version a reader sees.

Only "no such file" means "not there"; any other storage failure is raised. Reading never deletes:
damage is reported, and rebuilding the artifact, under the lock of its key, replaces it.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from expandr_core.errors import DataError
from expandr_core.store.artifacts import Artifact, content_digest
from expandr_core.store.download_cache import ReadCache
from expandr_core.store.filesystems import (
    STORE_REMEDY,
    explain_full_disk,
    flock,
    open_filesystem,
    partial_file,
    replace_folder,
)
from expandr_core.store.manifests import (
    MANIFEST,
    DamagedArtifact,
    describe_files,
    flow_run_of,
    is_key,
    reference,
    sealed,
    sha256_of,
    unsealed,
)
from expandr_core.store.run_records import NOTES, read_records, write_record
from expandr_core.store.verification import intact, known_sha256, verified

log = logging.getLogger(__name__)
_FILES_AT_ONCE = 8


class Store:
    """Artifacts under one root, with a local scratch folder for unfinished work."""

    def __init__(self, url: str, scratch: str | Path | None = None, cache_bytes: int | None = None):
        """Open a store.

        Args:
            url: a folder, or `s3://bucket/prefix`.
            scratch: local folder for unfinished work and downloads; by default `.scratch` in a
                local store and `~/.cache/expandr` for one on S3.
            cache_bytes: limit for downloads; the least recently used are removed first.

        Raises:
            DataError: if the bucket does not exist.
        """
        self.filesystem, self.root = open_filesystem(url)
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        self.url = self.root if self.is_local else url.rstrip("/")
        self.cache_bytes = cache_bytes
        default = Path(self.root, ".scratch") if self.is_local else Path("~/.cache/expandr")
        self._scratch = Path(scratch or default).expanduser().absolute()
        self.curves = self._scratch / "tensorboard"  # of trainings on this machine, by key
        if self.is_local:
            return
        if not url.startswith("s3://"):
            raise DataError(f"{url}: a store is a folder or s3://bucket/prefix")
        from expandr_core.store.leases import Leases
        from expandr_core.store.s3 import check_bucket

        check_bucket(self.filesystem, url)
        self.leases = Leases(self.filesystem, self._at("locks"), self.scratch)
        self.cache = ReadCache(self.scratch / "cache", cache_bytes)

    @property
    def scratch(self) -> Path:
        """The local folder for unfinished work and downloads, created on first use."""
        with contextlib.suppress(OSError):  # a read-only store needs none; a write reports it
            self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def _at(self, *parts: str) -> str:
        return "/".join([self.root, *parts])

    def folder(self, key: str) -> str:
        """Return the path of an artifact; anything but a key is refused."""
        if not is_key(key):
            raise DamagedArtifact(f"{key!r} is not an artifact key")
        return self._at("artifacts", key)

    def file(self, key: str, digest: str, path: str) -> str:
        """Return the path of a file of an artifact."""
        return f"{self.folder(key)}/{path if self.is_local else f'{digest[:12]}/{path}'}"

    def manifest(self, key: str) -> dict[str, Any]:
        """Read an artifact's manifest.

        Raises:
            FileNotFoundError: if there is no such artifact.
            DamagedArtifact: if the manifest has changed since it was written.
        """
        return unsealed(self.filesystem.cat_file(f"{self.folder(key)}/{MANIFEST}"), key)

    def lookup(self, key: str, made_by: str = "") -> Artifact | None:
        """Return the artifact if it exists and is intact; warn of a damaged one.

        Args:
            key: the artifact's key.
            made_by: if given, ignore artifacts made by other Prefect flow runs.
        """
        try:
            if made_by and flow_run_of(self.manifest(key)) != made_by:
                return None
            return self.verify(key)
        except FileNotFoundError:
            return None
        except DamagedArtifact as damage:
            log.warning("%s; it counts as missing and will be replaced when it is rebuilt", damage)
            return None

    def verify(self, key: str) -> Artifact:
        """Check every file of an artifact and of its shards against the manifests.

        Raises:
            FileNotFoundError: if there is no such artifact.
            DamagedArtifact: naming the first file that is missing or changed.
        """
        return reference(verified(self, key))

    def commit(
        self, key: str, folder: Path, parts: list[Artifact], manifest: dict[str, Any]
    ) -> Artifact:
        """Turn a finished folder into an artifact, atomically; replace any with the same key.

        Args:
            key: the artifact's key.
            folder: local folder with the finished files; it is moved.
            parts: its shards.
            manifest: `counts` and provenance.

        Raises:
            DataError: if the manifest could not be read back.
        """
        files = describe_files(folder)
        digest = content_digest({file["path"]: file["sha256"] for file in files}, parts)
        manifest = {
            "key": key,
            "digest": digest,
            "files": files,
            "parts": [part.model_dump() for part in parts],
            **manifest,
        }
        content = sealed(manifest)
        target = self.folder(key)
        if not self.is_local:
            self._upload(key, digest, folder, files)  # adds the ETags
            self.filesystem.pipe_file(f"{target}/{MANIFEST}", sealed(manifest).encode())
        elif self._there(key, digest):  # keep its files for their readers
            path = Path(target, MANIFEST)
            with explain_full_disk(path.parent, STORE_REMEDY), partial_file(path) as partial:
                partial.write_text(content)
            shutil.rmtree(folder)
        else:
            (folder / MANIFEST).write_text(content)
            replace_folder(folder, Path(target))
        return reference(manifest)

    def _there(self, key: str, digest: str) -> dict[str, Any] | None:
        """Return the manifest of an artifact if its files are intact and it has this digest."""
        with contextlib.suppress(FileNotFoundError, DamagedArtifact):
            manifest = intact(self, key)
            return manifest if manifest["digest"] == digest else None
        return None

    def _upload(self, key: str, digest: str, folder: Path, files: list[dict[str, Any]]) -> None:
        """Upload missing files, and add every ETag to `files`."""
        from expandr_core.store.s3 import upload

        there = self._there(key, digest)
        etags = {file["path"]: file.get("etag") for file in there["files"]} if there else {}

        def put(file: dict[str, Any]) -> None:
            path = file["path"]
            target = self.file(key, digest, path)
            file["etag"] = etags.get(path) or upload(self.filesystem, folder / path, target)

        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            list(pool.map(put, files))

    def local(self, artifact: Artifact) -> Path:
        """Return the local path of the artifact, after a download if it is on S3.

        Downloads stay until `release` or the end of this process.

        Raises:
            FileNotFoundError: if the artifact is gone.
            DamagedArtifact: if a download does not match the manifest.
        """
        if self.is_local:
            if not (folder := Path(self.folder(artifact.key))).is_dir():
                raise FileNotFoundError(f"{artifact.key} is not in {self.url} any more")
            return folder / artifact.path
        from expandr_core.store.s3 import download

        folder = self.cache.use(artifact.key)
        manifest = self.manifest(artifact.key)
        wanted = [file for file in manifest["files"] if artifact.path in ("", file["path"])]
        files = [file for file in wanted if not _is_there(folder, file)]

        def fetch(file: dict[str, Any]) -> None:
            source = self.file(artifact.key, manifest["digest"], file["path"])
            with partial_file(folder / file["path"]) as partial:
                download(self.filesystem, source, partial)
                if sha256_of(partial) != file["sha256"]:
                    raise DamagedArtifact(f"{artifact.key}: {file['path']} arrived damaged")

        with explain_full_disk(self.scratch), ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            self.cache.make_room(sum(file["size"] for file in files))
            list(pool.map(fetch, files))
        return folder / artifact.path

    def release(self, artifact: Artifact) -> None:
        """Stop protecting what `local` returned from removal."""
        if not self.is_local:
            self.cache.release(artifact.key)

    def shards(self, artifact: Artifact) -> list[Artifact]:
        """Return the shards of an artifact, in order."""
        return [Artifact(**part) for part in self.manifest(artifact.key)["parts"]]

    def remove(self, key: str) -> None:
        """Remove an artifact, its manifest first, so that a kill leaves nothing that looks whole."""
        folder = self.folder(key)
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(f"{folder}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm(folder, recursive=True)

    @contextlib.contextmanager
    def lock(self, key: str, lease: bool = True) -> Iterator[Path]:
        """Lock the key across machines; yield the local folder for its unfinished work.

        The operating system frees the lock of a dead holder, and on S3 its lease expires, so a kill
        never blocks anyone. Without a lease, only processes with the same scratch folder are kept out.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(flock(self.scratch / "locks" / key))
            if lease and not self.is_local:
                held.enter_context(self.leases.hold(key))
            work = self.scratch / "work" / key
            work.mkdir(parents=True, exist_ok=True)
            with explain_full_disk(self.scratch):
                yield work

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys with a prefix, sorted."""
        try:
            paths = self.filesystem.ls(self._at("artifacts"), detail=False)
        except FileNotFoundError:
            return []
        names = sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)
        return [name for name in names if name.startswith(prefix) and is_key(name)]

    def write_record(self, name: str, record: dict[str, Any]) -> None:
        """Write the record of a run: the artifacts that it used, in order."""
        write_record(self.filesystem, self._at("runs"), name, record)

    def write_note(self, name: str, note: dict[str, Any]) -> None:
        """Write the note of a run without a record: in progress, or failed."""
        write_record(self.filesystem, self._at(NOTES), name, note)

    def drop_note(self, name: str) -> None:
        """Remove the note of a run that now has a record."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self._at(NOTES, f"{name}.json"))

    def notes(self) -> list[dict[str, Any]]:
        """Return the notes of all runs without a record, oldest first; skip broken ones."""
        return list(read_records(self.filesystem, self._at(NOTES)))

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all runs, oldest first; skip broken ones with a warning."""
        return list(read_records(self.filesystem, self._at("runs")))


def _is_there(folder: Path, file: dict[str, Any]) -> bool:
    path = folder / file["path"]
    return path.exists() and known_sha256(path) == file["sha256"]
