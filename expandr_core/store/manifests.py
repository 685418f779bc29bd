"""The manifest of an artifact: written, sealed, and read back.

Manifests are checked on writing as strictly as on reading: no sealed manifest may lead a reader out of
the artifact's folder, or in a circle.
"""

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    AfterValidator,
    BaseModel,
    FiniteFloat,
    NonNegativeInt,
    StringConstraints,
    ValidationError,
)

from expandr_core.errors import DataError
from expandr_core.store.artifacts import Artifact, content_digest

MANIFEST = "manifest.json"
SEAL = "manifest_sha256"  # of the rest of the manifest
SCHEMA = 2  # of manifests; the first had no number
_KEY = r"[a-z0-9_]+-[0-9a-f]{20}"


class DamagedArtifact(Exception):
    """An artifact whose files do not match its manifest."""


def is_key(text: str) -> bool:
    """Tell whether a text is an artifact key, the only names of folders in the store.

    >>> is_key("expand-0123456789abcdef0123"), is_key("../expand-0123456789abcdef0123")
    (True, False)
    """
    return re.fullmatch(_KEY, text) is not None


def _inside(path: str) -> str:
    """Check that a path cannot lead out of the artifact's folder."""
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or "/".join(parts) != path:
        raise ValueError("not a relative path inside the artifact")
    if path == MANIFEST or re.search(r"[\\\x00-\x1f\x7f\ud800-\udfff]", path):
        raise ValueError("not allowed as a file name in an artifact")
    return path


# `$` would also match before a line break at the end
_Key = Annotated[str, StringConstraints(pattern=rf"\A{_KEY}\z")]
_Path = Annotated[str, AfterValidator(_inside)]
_Digest = Annotated[str, StringConstraints(pattern=r"\A[0-9a-f]{64}\z")]


class _File(BaseModel):
    path: _Path
    size: NonNegativeInt
    sha256: _Digest
    etag: str | None = None


class _Reference(BaseModel):
    key: _Key
    digest: _Digest
    path: Literal[""] | _Path = ""
    files: dict[_Path, str] = {}
    counts: dict[str, FiniteFloat] = {}


class _Manifest(BaseModel):
    key: _Key
    digest: _Digest
    files: list[_File]
    counts: dict[str, FiniteFloat]
    parts: list[_Reference]
    inputs: dict[str, _Reference] = {}
    sources: dict[str, str] = {}
    options: dict[str, Any] = {}
    seconds: FiniteFloat = 0
    created: str = ""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path) -> list[dict[str, Any]]:
    """Return path, size and SHA-256 of every file below a folder, sorted by path."""
    return [
        {
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(path for path in folder.rglob("*") if path.is_file())
    ]


def sealed(manifest: dict[str, Any]) -> str:
    """Return the text of a manifest, with the number of its schema and the digest of its content.

    Raises:
        DataError: if it could not be read back, for example because a number is not finite or a file
            name is not allowed.
    """
    key = manifest["key"]
    try:
        manifest = {"schema": SCHEMA} | json.loads(json.dumps(manifest, default=str))
        _check(manifest, key)
        return json.dumps(manifest | {SEAL: _seal(manifest)}, indent=1, ensure_ascii=False)
    except (ValueError, DamagedArtifact) as error:
        raise DataError(f"{key} cannot be kept: {error}") from error


def unsealed(content: str | bytes, key: str) -> dict[str, Any]:
    """Read a manifest; this is the one place that decides what damage is.

    Raises:
        DamagedArtifact: if it has changed since it was written, or describes no valid artifact.
        DataError: if a newer version wrote it.
    """
    try:
        manifest = json.loads(content, parse_constant=_refuse)
        seal = manifest.pop(SEAL, None) if isinstance(manifest, dict) else None
        intact = seal is not None and seal == _seal(manifest)
    except (ValueError, RecursionError) as error:
        raise DamagedArtifact(f"{key}: the manifest is not JSON ({error})") from error
    if not intact:
        raise DamagedArtifact(f"{key}: the manifest has changed since it was written")
    if manifest.get("schema", 1) > SCHEMA:
        raise DataError(
            f"{key} was made by a newer version (schema {manifest['schema']}, this one reads {SCHEMA}); "
            "use that version"
        )
    _check(manifest, key)
    return manifest


def _check(manifest: dict[str, Any], key: str) -> None:
    """Refuse a manifest that describes no valid artifact."""
    try:
        found = _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedArtifact(f"{key}: the manifest's {where!r}: {first['msg']}") from error
    if found.key != key:
        raise DamagedArtifact(f"{key}: the manifest belongs to {found.key}")
    files = {file.path: file.sha256 for file in found.files}
    if len(files) < len(found.files):
        raise DamagedArtifact(f"{key}: the manifest names a file twice")
    if not files and not found.parts:
        raise DamagedArtifact(f"{key}: the manifest names no file")
    parts = [Artifact(key=part.key, digest=part.digest) for part in found.parts]
    if found.digest != content_digest(files, parts):
        raise DamagedArtifact(f"{key}: the manifest's digest does not match its files and parts")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def flow_run_of(manifest: dict[str, Any]) -> str:
    """Return the id of the Prefect flow run that made an artifact, or ""."""
    runtime = manifest.get("runtime")
    return str(runtime.get("prefect_flow_run", "")) if isinstance(runtime, dict) else ""


def _seal(manifest: dict[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fact(manifest: dict[str, Any], name: str) -> Any:
    """Return a field of a manifest's provenance.

    Raises:
        DamagedArtifact: if the manifest lacks it.
    """
    if name not in manifest:
        raise DamagedArtifact(f"{manifest['key']}: the manifest lacks {name!r}")
    return manifest[name]


def reference(manifest: dict[str, Any]) -> Artifact:
    """Return the reference to a manifest's artifact."""
    return Artifact(
        key=manifest["key"],
        digest=manifest["digest"],
        files={file["path"]: file["sha256"] for file in manifest["files"]},
        counts=manifest["counts"],
    )
