"""The manifest of an artifact: how it is written, sealed, and read again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from expandr_core.artifacts import Artifact

MANIFEST = "manifest.json"
SEAL = "manifest_sha256"  # of the rest of the manifest


class DamagedArtifact(Exception):
    """An artifact whose files do not match its manifest."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path) -> list[dict[str, Any]]:
    """Return path, size and SHA-256 of every file below a folder, in the order of their names."""
    return [
        {
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in sorted(path for path in folder.rglob("*") if path.is_file())
    ]


def sealed(manifest: dict[str, Any]) -> str:
    """Return the text of a manifest, with the digest of its content."""
    manifest = json.loads(json.dumps(manifest, default=str))
    return json.dumps(manifest | {SEAL: _seal(manifest)}, indent=1, ensure_ascii=False)


def unsealed(content: str | bytes, key: str) -> dict[str, Any]:
    """Read the manifest of an artifact.

    Raises:
        DamagedArtifact: if it is not what was written.
    """
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise DamagedArtifact(f"{key}: the manifest is not JSON ({error})") from error
    seal = manifest.pop(SEAL, None) if isinstance(manifest, dict) else None
    if seal is None or seal != _seal(manifest) or manifest["key"] != key:
        raise DamagedArtifact(f"{key}: the manifest has changed since it was written")
    return manifest


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def reference(manifest: dict[str, Any]) -> Artifact:
    """Return the reference to a manifest's artifact."""
    return Artifact(
        key=manifest["key"],
        digest=manifest["digest"],
        files={file["path"]: file["sha256"] for file in manifest["files"]},
        counts=manifest["counts"],
    )
