"""The artifact store: a local folder or an `s3://` prefix, through fsspec.

An artifact is written to a scratch folder first. On a local store the finished folder is renamed
into place; on S3 the files are uploaded and the manifest last. So a folder without a manifest does
not exist, and a kill at any point leaves nothing that looks like an artifact.

A hit is checked, not believed: local files by SHA-256, objects on S3 by size and the ETag noted at
commit. Only "no such file" means "not there"; every other failure of the storage is raised.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from expandr_core.artifacts import Artifact, content_digest
from expandr_core.errors import DataError

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
SEAL = "manifest_sha256"  # of the rest of the manifest
_CHUNK = 1 << 22


class DamagedArtifact(Exception):
    """An artifact whose files do not match its manifest."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Open the file system of a folder or URL; return it with the path in it.

    Raises:
        DataError: if the URL carries credentials, which would end up in manifests and logs.
    """
    if re.match(r"^[a-z0-9]+://[^/]*@", url):
        raise DataError(
            "a URL must not carry credentials; put them into the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a credentials file"
        )
    if "://" not in url:
        url = str(Path(url).expanduser().absolute())
    options = {"use_listings_cache": False} if url.startswith("s3://") else {}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    return filesystem, path.rstrip("/")


def kind_of(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """Return "file", "directory" or, only if nothing is there, "".

    fsspec's own `exists`, `isfile` and `isdir` also take an unreachable server for "not there".
    """
    try:
        return filesystem.info(path)["type"]
    except FileNotFoundError:
        return ""


class Store:
    """Artifacts under one root, with a local scratch folder for work in progress."""

    def __init__(self, url: str, scratch: str | Path | None = None):
        """Open a store.

        Args:
            url: a folder, or `s3://bucket/prefix`.
            scratch: local folder for unfinished work; by default `.scratch` in a local store and
                `~/.cache/expandr` for one on S3.

        Raises:
            DataError: if the bucket does not exist.
        """
        self.filesystem, self.root = open_filesystem(url)
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        self.url = self.root if self.is_local else url.rstrip("/")
        default = Path(self.root, ".scratch") if self.is_local else Path("~/.cache/expandr")
        self.scratch = Path(scratch or default).expanduser().absolute()
        self.scratch.mkdir(parents=True, exist_ok=True)
        if not self.is_local:
            try:  # `exists` would also take an unreachable server for a missing bucket
                self.filesystem.info(self.root.split("/")[0])
            except FileNotFoundError as error:
                raise DataError(
                    f"{url}: no such bucket; create it, or correct the store's URL"
                ) from error

    def _at(self, *parts: str) -> str:
        return "/".join([self.root, *parts])

    def manifest(self, key: str) -> dict[str, Any]:
        """Read an artifact's manifest.

        Raises:
            FileNotFoundError: if there is no such artifact.
            DamagedArtifact: if the manifest is not what was written.
        """
        content = self.filesystem.cat_file(self._at("artifacts", key, MANIFEST))
        try:
            manifest = json.loads(content)
        except ValueError as error:
            raise DamagedArtifact(f"{key}: the manifest is not JSON ({error})") from error
        seal = manifest.pop(SEAL, None) if isinstance(manifest, dict) else None
        if seal is None or seal != _seal(manifest) or manifest["key"] != key:
            raise DamagedArtifact(f"{key}: the manifest has changed since it was written")
        return manifest

    def lookup(self, key: str) -> Artifact | None:
        """Return the artifact if it is there and whole; a damaged one is removed with a warning."""
        try:
            return self.verify(key)
        except FileNotFoundError:
            return None
        except DamagedArtifact as damage:
            log.warning("%s; it is removed and made again", damage)
            self._remove(key)
            return None

    def verify(self, key: str) -> Artifact:
        """Check every file of an artifact and of its parts against the manifests.

        Raises:
            FileNotFoundError: if there is no such artifact.
            DamagedArtifact: naming the first file that is missing or changed.
        """
        manifest = self.manifest(key)
        for file in manifest["files"]:
            self._verify_file(key, file)
        for part in [Artifact(**part) for part in manifest["parts"]]:
            try:
                found = self.verify(part.key)
            except FileNotFoundError as error:
                raise DamagedArtifact(f"{key}: its part {part.key} is missing") from error
            except DamagedArtifact:
                self._remove(part.key)
                raise
            if found.digest != part.digest:
                raise DamagedArtifact(f"{key}: its part {part.key} has changed")
        return self._reference(manifest)

    def _verify_file(self, key: str, file: dict[str, Any]) -> None:
        path = self._at("artifacts", key, file["path"])
        try:
            info = self.filesystem.info(path)
        except FileNotFoundError as error:
            raise DamagedArtifact(f"{key}: {file['path']} is missing") from error
        same = info["size"] == file["size"]
        if same and self.is_local:
            same = sha256_of(Path(path)) == file["sha256"]
        elif same:
            same = info.get("ETag") == file["etag"]
        if not same:
            raise DamagedArtifact(f"{key}: {file['path']} has changed since it was written")

    @staticmethod
    def _reference(manifest: dict[str, Any]) -> Artifact:
        return Artifact(
            key=manifest["key"],
            digest=manifest["digest"],
            files={file["path"]: file["sha256"] for file in manifest["files"]},
            counts=manifest["counts"],
        )

    def commit(
        self, key: str, folder: Path, parts: list[Artifact], manifest: dict[str, Any]
    ) -> Artifact:
        """Make a finished folder an artifact, at once or not at all.

        Args:
            key: the artifact's key.
            folder: local folder with the finished files; it is moved.
            parts: shards that belong to it.
            manifest: `counts` and whatever else tells how it came to be.
        """
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files: list[dict[str, Any]] = [
            {
                "path": path.relative_to(folder).as_posix(),
                "size": path.stat().st_size,
                "sha256": sha256_of(path),
            }
            for path in paths
        ]
        if not self.is_local:
            self._upload(key, folder, files)
        digest = content_digest({file["path"]: file["sha256"] for file in files}, parts)
        manifest = {
            "key": key,
            "digest": digest,
            "files": files,
            "parts": [part.model_dump() for part in parts],
            **manifest,
        }
        manifest = json.loads(json.dumps(manifest, default=str))
        content = json.dumps(manifest | {SEAL: _seal(manifest)}, indent=1, ensure_ascii=False)
        if self.is_local:
            (folder / MANIFEST).write_text(content)
            target = Path(self._at("artifacts", key))
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # without a manifest, or it would have been found
                shutil.rmtree(target)
            folder.rename(target)
        else:
            self.filesystem.pipe_file(self._at("artifacts", key, MANIFEST), content.encode())
        return self._reference(manifest)

    def _upload(self, key: str, folder: Path, files: list[dict[str, Any]]) -> None:
        def put(file: dict[str, Any]) -> None:
            target = self._at("artifacts", key, file["path"])
            self.filesystem.put_file(str(folder / file["path"]), target)
            info = self.filesystem.info(target)
            if info["size"] != file["size"]:
                raise OSError(f"{target}: {info['size']} of {file['size']} bytes arrived")
            file["etag"] = info["ETag"]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, files))

    def local(self, artifact: Artifact) -> Path:
        """Return a local path of the artifact's folder, or of its file; objects are downloaded.

        Raises:
            DamagedArtifact: if what was downloaded does not match the manifest.
        """
        if self.is_local:
            return Path(self._at("artifacts", artifact.key), artifact.path)
        folder = self.scratch / "cache" / artifact.key
        files = self.manifest(artifact.key)["files"]
        for file in files:
            target = folder / file["path"]
            if artifact.path not in ("", file["path"]):
                continue
            if target.exists() and sha256_of(target) == file["sha256"]:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
            self.filesystem.get_file(
                self._at("artifacts", artifact.key, file["path"]), str(partial)
            )
            if sha256_of(partial) != file["sha256"]:
                partial.unlink()
                raise DamagedArtifact(f"{artifact.key}: {file['path']} arrived damaged")
            partial.rename(target)
        return folder / artifact.path

    def parts(self, artifact: Artifact) -> list[Artifact]:
        """Return the shards of an artifact, in order."""
        return [Artifact(**part) for part in self.manifest(artifact.key)["parts"]]

    def _remove(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm(self._at("artifacts", key), recursive=True)
        shutil.rmtree(self.scratch / "cache" / key, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[Path]:
        """Hold the key on this machine; yield the folder for its unfinished work.

        The operating system frees the lock when its holder dies, so a kill never blocks anyone.
        """
        lock = self.scratch / "locks" / key
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s is being made by another process; waiting for it", key)
                fcntl.flock(file, fcntl.LOCK_EX)
            work = self.scratch / "work" / key
            work.mkdir(parents=True, exist_ok=True)
            yield work

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that start with a prefix."""
        try:
            paths = self.filesystem.ls(self._at("artifacts"), detail=False)
        except FileNotFoundError:
            return []
        names = sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)
        return [name for name in names if name.startswith(prefix)]

    def write_record(self, name: str, record: dict[str, Any]) -> None:
        """Keep the record of a run: which artifacts it used, in order."""
        folder = self._at("runs")
        self.filesystem.makedirs(folder, exist_ok=True)
        partial = f"{folder}/.{name}.partial"
        content = json.dumps(record, indent=1, ensure_ascii=False).encode()
        self.filesystem.pipe_file(partial, content)
        self.filesystem.mv(partial, f"{folder}/{name}.json")

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all runs, oldest first."""
        try:
            paths = self.filesystem.ls(self._at("runs"), detail=False)
        except FileNotFoundError:
            return []
        names = sorted(path for path in paths if path.endswith(".json"))
        return [json.loads(self.filesystem.cat_file(name)) for name in names]
