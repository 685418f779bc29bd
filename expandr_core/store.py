"""The artifact store: a local folder or an `s3://` prefix, through fsspec.

An artifact is written to a scratch folder first. On a local store the finished folder is renamed
into place; on S3 the files are uploaded and the manifest last. So a folder without a manifest does
not exist, and a kill at any point leaves nothing that looks like an artifact.

On S3 the files lie in a folder named by their digest. So an artifact that is made again takes nothing
from who reads the former one: equal bytes are the same objects, and others are beside them until
`expandr gc`. A reader has the one or the other, by the manifest that it read.

A hit is checked, not believed: local files by SHA-256, objects on S3 by size and the ETag noted at
commit. Only "no such file" means "not there"; every other failure of the storage is raised.
"""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from expandr_core.artifacts import Artifact, content_digest
from expandr_core.errors import DataError
from expandr_core.filesystems import (
    flock,
    naming_a_full_disk,
    open_filesystem,
    partial_file,
    replace_folder,
)
from expandr_core.manifests import (
    MANIFEST,
    DamagedArtifact,
    describe_files,
    reference,
    sealed,
    sha256_of,
    unsealed,
)
from expandr_core.read_cache import ReadCache
from expandr_core.run_records import read_records, write_record

log = logging.getLogger(__name__)
_FILES_AT_ONCE = 8
_PARTS_AT_ONCE = 32


class Store:
    """Artifacts under one root, with a local scratch folder for work in progress."""

    def __init__(self, url: str, scratch: str | Path | None = None, cache_bytes: int | None = None):
        """Open a store.

        Args:
            url: a folder, or `s3://bucket/prefix`.
            scratch: local folder for unfinished work and downloads; by default `.scratch` in a
                local store and `~/.cache/expandr` for one on S3.
            cache_bytes: what downloads may take of it; the least recently used go first.

        Raises:
            DataError: if the bucket does not exist.
        """
        self.filesystem, self.root = open_filesystem(url)
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        self.url = self.root if self.is_local else url.rstrip("/")
        self.cache_bytes = cache_bytes
        default = Path(self.root, ".scratch") if self.is_local else Path("~/.cache/expandr")
        self.scratch = Path(scratch or default).expanduser().absolute()
        self.scratch.mkdir(parents=True, exist_ok=True)
        if self.is_local:
            return
        if not url.startswith("s3://"):
            raise DataError(f"{url}: a store is a folder or s3://bucket/prefix")
        from expandr_core.s3 import is_missing_bucket

        try:
            self.filesystem.info(self.root.split("/")[0])
        except OSError as error:
            if not is_missing_bucket(error):
                raise
            raise DataError(
                f"{url}: no such bucket; create it, or correct the store's URL"
            ) from error
        from expandr_core.leases import Leases

        self.leases = Leases(self.filesystem, self._at("locks"), self.scratch)
        self.cache = ReadCache(self.scratch / "cache", cache_bytes)

    def _at(self, *parts: str) -> str:
        return "/".join([self.root, *parts])

    def _file(self, key: str, digest: str, path: str) -> str:
        """Return where a file of an artifact lies."""
        inner = path if self.is_local else f"{digest[:12]}/{path}"
        return self._at("artifacts", key, inner)

    def manifest(self, key: str) -> dict[str, Any]:
        """Read an artifact's manifest.

        Raises:
            FileNotFoundError: if there is no such artifact.
            DamagedArtifact: if the manifest is not what was written.
        """
        return unsealed(self.filesystem.cat_file(self._at("artifacts", key, MANIFEST)), key)

    def lookup(self, key: str, not_before: datetime | None = None) -> Artifact | None:
        """Return the artifact if it is there and whole; a damaged one is removed with a warning.

        Args:
            key: the artifact's key.
            not_before: an older artifact counts as not there, and stays. With a time zone; the
                second counts, since manifests note no less.
        """
        try:
            manifest = self.manifest(key)
            if not_before and datetime.fromisoformat(manifest["created"]) < not_before.replace(
                microsecond=0
            ):
                return None
            return self._verify(manifest)
        except FileNotFoundError:
            return None
        except DamagedArtifact as damage:
            log.warning("%s; it is removed and made again", damage)
            self.remove(key)
            return None

    def verify(self, key: str) -> Artifact:
        """Check every file of an artifact and of its parts against the manifests.

        Raises:
            FileNotFoundError: if there is no such artifact.
            DamagedArtifact: naming the first file that is missing or changed; damaged parts are
                removed, so that they are made again with the whole.
        """
        return self._verify(self.manifest(key))

    def _verify(self, manifest: dict[str, Any]) -> Artifact:
        self._verify_files(manifest)
        parts = [Artifact(**part) for part in manifest["parts"]]
        if parts:
            with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
                damages = list(
                    pool.map(lambda part: self._verify_part(manifest["key"], part), parts)
                )
            if any(damages):
                raise next(damage for damage in damages if damage)
        return reference(manifest)

    def _verify_part(self, key: str, part: Artifact) -> DamagedArtifact | None:
        try:
            found = self.verify(part.key)
        except FileNotFoundError:
            return DamagedArtifact(f"{key}: its part {part.key} is missing")
        except DamagedArtifact as damage:
            self.remove(part.key)
            return damage
        if found.digest != part.digest:
            return DamagedArtifact(f"{key}: its part {part.key} has changed")
        return None

    def _verify_files(self, manifest: dict[str, Any]) -> None:
        for file in manifest["files"]:
            path = self._file(manifest["key"], manifest["digest"], file["path"])
            try:
                info = self.filesystem.info(path)
            except FileNotFoundError as error:
                raise DamagedArtifact(f"{manifest['key']}: {file['path']} is missing") from error
            same = info["size"] == file["size"]
            if same and self.is_local:
                same = sha256_of(Path(path)) == file["sha256"]
            elif same:
                same = info.get("ETag") == file["etag"]
            if not same:
                raise DamagedArtifact(
                    f"{manifest['key']}: {file['path']} has changed since it was written"
                )

    def commit(
        self, key: str, folder: Path, parts: list[Artifact], manifest: dict[str, Any]
    ) -> Artifact:
        """Make a finished folder an artifact, at once or not at all; it replaces one of that key.

        Args:
            key: the artifact's key.
            folder: local folder with the finished files; it is moved.
            parts: shards that belong to it.
            manifest: `counts` and whatever else tells how it came to be.
        """
        files = describe_files(folder)
        digest = content_digest({file["path"]: file["sha256"] for file in files}, parts)
        if not self.is_local:
            self._upload(key, digest, folder, files)
        manifest = {
            "key": key,
            "digest": digest,
            "files": files,
            "parts": [part.model_dump() for part in parts],
            **manifest,
        }
        content = sealed(manifest)
        if not self.is_local:
            self.filesystem.pipe_file(self._at("artifacts", key, MANIFEST), content.encode())
        elif self._whole(key, digest):  # its files stay: somebody may read them
            with partial_file(Path(self._at("artifacts", key, MANIFEST))) as partial:
                partial.write_text(content)
            shutil.rmtree(folder)
        else:
            (folder / MANIFEST).write_text(content)
            replace_folder(folder, Path(self._at("artifacts", key)))
        return reference(manifest)

    def _whole(self, key: str, digest: str) -> dict[str, Any] | None:
        """Return the manifest of an artifact if its own files are whole and its digest is this."""
        try:
            manifest = self.manifest(key)
            self._verify_files(manifest)
        except (FileNotFoundError, DamagedArtifact):
            return None
        return manifest if manifest["digest"] == digest else None

    def _upload(self, key: str, digest: str, folder: Path, files: list[dict[str, Any]]) -> None:
        """Upload what is not there, and note every ETag."""
        from expandr_core.s3 import upload

        there = self._whole(key, digest)
        etags = {file["path"]: file["etag"] for file in there["files"]} if there else {}

        def put(file: dict[str, Any]) -> None:
            path = file["path"]
            target = self._file(key, digest, path)
            file["etag"] = etags.get(path) or upload(self.filesystem, folder / path, target)

        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            list(pool.map(put, files))

    def local(self, artifact: Artifact) -> Path:
        """Return a local path of the artifact's folder, or of its file; objects are downloaded.

        What was downloaded stays until this process ends, or until `release`.

        Raises:
            FileNotFoundError: if the artifact is gone.
            DamagedArtifact: if what was downloaded does not match the manifest.
        """
        if self.is_local:
            return Path(self._at("artifacts", artifact.key), artifact.path)
        from expandr_core.s3 import download

        folder = self.cache.use(artifact.key)
        manifest = self.manifest(artifact.key)
        files = [
            file
            for file in manifest["files"]
            if artifact.path in ("", file["path"])
            and not _is_same(folder / file["path"], file["sha256"])
        ]

        def fetch(file: dict[str, Any]) -> None:
            source = self._file(artifact.key, manifest["digest"], file["path"])
            with partial_file(folder / file["path"]) as partial:
                download(self.filesystem, source, partial)
                if sha256_of(partial) != file["sha256"]:
                    raise DamagedArtifact(f"{artifact.key}: {file['path']} arrived damaged")

        with naming_a_full_disk(self.scratch), ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            self.cache.make_room(sum(file["size"] for file in files))
            list(pool.map(fetch, files))
        return folder / artifact.path

    def release(self, artifact: Artifact) -> None:
        """Tell that this process no longer reads what `local` returned."""
        if not self.is_local:
            self.cache.release(artifact.key)

    def parts(self, artifact: Artifact) -> list[Artifact]:
        """Return the shards of an artifact, in order."""
        return [Artifact(**part) for part in self.manifest(artifact.key)["parts"]]

    def remove(self, key: str) -> None:
        """Remove an artifact, its manifest first: a kill meanwhile leaves nothing that is found."""
        folder = self._at("artifacts", key)
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(f"{folder}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm(folder, recursive=True)

    @contextlib.contextmanager
    def lock(self, key: str, lease: bool = True) -> Iterator[Path]:
        """Hold the key, among all machines; yield the local folder for its unfinished work.

        The operating system frees the lock when its holder dies, and on S3 a lease runs out, so a
        kill never blocks anyone.

        Args:
            key: what to hold.
            lease: without one, only processes with this scratch folder are kept out.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(flock(self.scratch / "locks" / key))
            if lease and not self.is_local:
                held.enter_context(self.leases.hold(key))
            work = self.scratch / "work" / key
            work.mkdir(parents=True, exist_ok=True)
            with naming_a_full_disk(self.scratch):
                yield work

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that start with a prefix."""
        try:
            paths = self.filesystem.ls(self._at("artifacts"), detail=False)
        except FileNotFoundError:
            return []
        names = sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)
        return [name for name in names if name.startswith(prefix) and not name.startswith(".")]

    def write_record(self, name: str, record: dict[str, Any]) -> None:
        """Keep the record of a run: which artifacts it used, in order."""
        write_record(self.filesystem, self._at("runs"), name, record)

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all runs, oldest first; a broken one is left out with a warning."""
        return list(read_records(self.filesystem, self._at("runs")))


def _is_same(path: Path, sha256: str) -> bool:
    return path.exists() and sha256_of(path) == sha256
