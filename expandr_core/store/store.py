"""The artifact store: a local folder or an `s3://` prefix, through fsspec.

An artifact is written to a scratch folder first. On a local store the finished folder is renamed
into place; on S3 the files are uploaded and the manifest last. So a folder without a manifest does
not exist, and a kill at any point leaves nothing that looks like an artifact.

On S3 the files lie in a folder named by their digest. So an artifact that is made again takes nothing
from who reads the former one: equal bytes are the same objects, and others are beside them until
`expandr gc`. A reader has the one or the other, by the manifest that it read.

A hit is checked, not believed: local files by SHA-256, objects on S3 by size and the ETag noted at
commit, or by SHA-256 where a copy got another ETag. Only "no such file" means "not there"; every
other failure of the storage is raised.

Reading never deletes. Damage is reported; who makes the artifact again, under the lock of its key,
replaces it.
"""

import contextlib
import hashlib
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

log = logging.getLogger(__name__)
_FILES_AT_ONCE = 8
_SHARDS_AT_ONCE = 32
_BLOCK = 1 << 24  # bytes


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
        self._scratch = Path(scratch or default).expanduser().absolute()
        if self.is_local:
            return
        if not url.startswith("s3://"):
            raise DataError(f"{url}: a store is a folder or s3://bucket/prefix")
        from expandr_core.store.s3 import is_missing_bucket

        try:
            self.filesystem.info(self.root.split("/")[0])
        except OSError as error:
            if not is_missing_bucket(error):
                raise
            raise DataError(
                f"{url}: no such bucket; create it, or correct the store's URL"
            ) from error
        from expandr_core.store.leases import Leases

        self.leases = Leases(self.filesystem, self._at("locks"), self.scratch)
        self.cache = ReadCache(self.scratch / "cache", cache_bytes)

    @property
    def scratch(self) -> Path:
        """The local folder for unfinished work and downloads, which is made when it is needed.

        Who only reads a local store needs none: the store may be read-only, or not be there.
        """
        with contextlib.suppress(OSError):  # who writes into it will say so
            self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def _at(self, *parts: str) -> str:
        return "/".join([self.root, *parts])

    def _folder(self, key: str) -> str:
        """Return where an artifact lies; nothing but a key leads there."""
        if not is_key(key):
            raise DamagedArtifact(f"{key!r} is no key of an artifact")
        return self._at("artifacts", key)

    def _file(self, key: str, digest: str, path: str) -> str:
        """Return where a file of an artifact lies."""
        return f"{self._folder(key)}/{path if self.is_local else f'{digest[:12]}/{path}'}"

    def manifest(self, key: str) -> dict[str, Any]:
        """Read an artifact's manifest.

        Raises:
            FileNotFoundError: if there is no such artifact.
            DamagedArtifact: if the manifest is not what was written.
        """
        return unsealed(self.filesystem.cat_file(f"{self._folder(key)}/{MANIFEST}"), key)

    def lookup(self, key: str, made_by: str = "") -> Artifact | None:
        """Return the artifact if it is there and whole; warn of a damaged one.

        Args:
            key: the artifact's key.
            made_by: the artifact of another Prefect flow run counts as not there, and stays.
        """
        try:
            if made_by and flow_run_of(self.manifest(key)) != made_by:
                return None
            return self.verify(key)
        except FileNotFoundError:
            return None
        except DamagedArtifact as damage:
            log.warning("%s; it counts as missing, and is replaced when it is made again", damage)
            return None

    def verify(self, key: str) -> Artifact:
        """Check every file of an artifact and of its parts against the manifests.

        Raises:
            FileNotFoundError: if there is no such artifact.
            DamagedArtifact: naming the first file that is missing or changed.
        """
        manifest = self._whole(key)
        below = [(key, part) for part in manifest["parts"]]
        # A digest covers those of the parts and is compared before their own parts: no circle is whole
        while below:
            with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
                parts = list(pool.map(lambda each: self._whole_part(*each), below))
            deeper = {part["key"]: (each["key"], part) for each in parts for part in each["parts"]}
            below = list(deeper.values())
        return reference(manifest)

    def _whole_part(self, key: str, part: dict[str, Any]) -> dict[str, Any]:
        """Return the manifest of a part whose own files are whole."""
        try:
            manifest = self._whole(part["key"])
        except FileNotFoundError as error:
            raise DamagedArtifact(f"{key}: its part {part['key']} is missing") from error
        except DamagedArtifact as damage:
            raise DamagedArtifact(f"{key}: its part {damage}") from damage
        if manifest["digest"] != part["digest"]:
            raise DamagedArtifact(f"{key}: its part {part['key']} has changed")
        return manifest

    def _whole(self, key: str) -> dict[str, Any]:
        """Return the manifest of an artifact whose own files are whole.

        Who makes it again may replace them while we read: then the new ones count.
        """
        manifest = self.manifest(key)
        while True:
            damage = None
            try:
                self._verify_files(manifest)
            except DamagedArtifact as error:
                damage = error
            if not damage and not self.is_local:  # the former files stay on S3
                return manifest
            before, manifest = manifest, self.manifest(key)
            if manifest == before:
                if damage:
                    raise damage
                return manifest

    def _verify_files(self, manifest: dict[str, Any]) -> None:
        key = manifest["key"]
        for file in manifest["files"]:
            path = self._file(key, manifest["digest"], file["path"])
            try:
                same = self._is_same(path, file)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise DamagedArtifact(f"{key}: {file['path']} is missing") from error
            if not same:
                raise DamagedArtifact(f"{key}: {file['path']} has changed since it was written")
            if self.is_local and not _is_within(path, self._folder(key)):
                raise DamagedArtifact(f"{key}: {file['path']} is a link out of the artifact")

    def _is_same(self, path: str, file: dict[str, Any]) -> bool:
        """Compare a stored file with what its manifest says."""
        info = self.filesystem.info(path)
        if info["size"] != file["size"] or info["type"] != "file":
            return False
        if self.is_local:
            return sha256_of(Path(path)) == file["sha256"]
        return info.get("ETag", "") == file.get("etag") or (
            self._sha256_of_object(path, info["size"]) == file["sha256"]
        )

    def _sha256_of_object(self, path: str, size: int) -> str:
        """Read an object whose ETag is another: a copy of the store may have cut it differently."""
        digest = hashlib.sha256()
        for start in range(0, size, _BLOCK):
            end = min(start + _BLOCK, size)
            block: Any = self.filesystem.cat_file(path, start=start, end=end)
            digest.update(block)
        return digest.hexdigest()

    def commit(
        self, key: str, folder: Path, parts: list[Artifact], manifest: dict[str, Any]
    ) -> Artifact:
        """Make a finished folder an artifact, at once or not at all; it replaces one of that key.

        Args:
            key: the artifact's key.
            folder: local folder with the finished files; it is moved.
            parts: shards that belong to it.
            manifest: `counts` and whatever else tells how it came to be.

        Raises:
            DataError: if it holds what could not be read again.
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
        target = self._folder(key)
        if not self.is_local:
            self._upload(key, digest, folder, files)  # which notes the ETags
            self.filesystem.pipe_file(f"{target}/{MANIFEST}", sealed(manifest).encode())
        elif self._there(key, digest):  # its files stay: somebody may read them
            with (
                explain_full_disk(Path(target), STORE_REMEDY),
                partial_file(Path(target, MANIFEST)) as partial,
            ):
                partial.write_text(content)
            shutil.rmtree(folder)
        else:
            (folder / MANIFEST).write_text(content)
            replace_folder(folder, Path(target))
        return reference(manifest)

    def _there(self, key: str, digest: str) -> dict[str, Any] | None:
        """Return the manifest of an artifact if its own files are whole and its digest is this."""
        with contextlib.suppress(FileNotFoundError, DamagedArtifact):
            manifest = self._whole(key)
            return manifest if manifest["digest"] == digest else None
        return None

    def _upload(self, key: str, digest: str, folder: Path, files: list[dict[str, Any]]) -> None:
        """Upload what is not there, and note every ETag."""
        from expandr_core.store.s3 import upload

        there = self._there(key, digest)
        etags = {file["path"]: file.get("etag") for file in there["files"]} if there else {}

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
            return Path(self._folder(artifact.key), artifact.path)
        from expandr_core.store.s3 import download

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

        with explain_full_disk(self.scratch), ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            self.cache.make_room(sum(file["size"] for file in files))
            list(pool.map(fetch, files))
        return folder / artifact.path

    def release(self, artifact: Artifact) -> None:
        """Tell that this process no longer reads what `local` returned."""
        if not self.is_local:
            self.cache.release(artifact.key)

    def shards(self, artifact: Artifact) -> list[Artifact]:
        """Return the shards of an artifact, in order."""
        return [Artifact(**part) for part in self.manifest(artifact.key)["parts"]]

    def remove(self, key: str) -> None:
        """Remove an artifact, its manifest first: a kill meanwhile leaves nothing that is found."""
        folder = self._folder(key)
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
            with explain_full_disk(self.scratch):
                yield work

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that start with a prefix."""
        try:
            paths = self.filesystem.ls(self._at("artifacts"), detail=False)
        except FileNotFoundError:
            return []
        names = sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)
        return [name for name in names if name.startswith(prefix) and is_key(name)]

    def write_record(self, name: str, record: dict[str, Any]) -> None:
        """Keep the record of a run: which artifacts it used, in order."""
        write_record(self.filesystem, self._at("runs"), name, record)

    def write_note(self, name: str, note: dict[str, Any]) -> None:
        """Keep a note of a run that has no record: it goes on, or has failed."""
        write_record(self.filesystem, self._at(NOTES), name, note)

    def drop_note(self, name: str) -> None:
        """Remove a run's note, once it has a record."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm_file(self._at(NOTES, f"{name}.json"))

    def notes(self) -> list[dict[str, Any]]:
        """Return the notes of all runs without a record, oldest first; see `records`."""
        return list(read_records(self.filesystem, self._at(NOTES)))

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all runs, oldest first; a broken one is left out with a warning."""
        return list(read_records(self.filesystem, self._at("runs")))


def _is_same(path: Path, sha256: str) -> bool:
    return path.exists() and sha256_of(path) == sha256


def _is_within(path: str, folder: str) -> bool:
    """Tell whether a file lies in a folder itself, and not behind a link."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())
