"""References to artifacts, and the specification of a stage, from which its key is derived."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict


class Artifact(BaseModel):
    """A reference to an artifact or one of its files, small enough to show and cache.

    Attributes:
        key: `<stage>-<hash of everything that determines the bytes>`; also the folder's name.
        digest: SHA-256 of the content (of all files and parts, or of the one file `path`).
        path: a file inside the artifact; empty for the whole artifact.
        files: SHA-256 by file name.
        counts: what the stage counted, such as rows written, or dropped by reason.
    """

    model_config = ConfigDict(frozen=True)
    key: str
    digest: str
    path: str = ""
    files: dict[str, str] = {}
    counts: dict[str, float] = {}

    @property
    def stage(self) -> str:
        """The stage that made the artifact."""
        return self.key.rpartition("-")[0]

    def at(self, path: str) -> "Artifact":
        """Refer to one file, so that changes to the others do not affect its readers."""
        return self.model_copy(
            update={"path": path, "digest": self.files[path], "files": {}, "counts": {}}
        )


class StageSpec(BaseModel):
    """Everything a stage needs to run; its key names the artifact before it exists.

    Attributes:
        stage: module in `expandr_core.stages`, also the first part of the key.
        version: the module's VERSION, raised when equal options give different bytes.
        options: the options that determine the bytes (`options.identity`).
        runtime: all options, including those that only change speed or location.
        inputs: artifacts by role; role and content digest enter the key.
        sources: SHA-256 of files read from outside the store, by role and name.
        max_shards: make only the first shards of a sharded stage; 0 for all. The shards are the same
            either way.
    """

    model_config = ConfigDict(frozen=True)
    stage: str
    version: int
    seed: int = 0
    options: dict[str, Any] = {}
    runtime: dict[str, Any] = {}
    inputs: dict[str, Artifact] = {}
    sources: dict[str, str] = {}
    max_shards: int = 0

    @cached_property
    def key(self) -> str:
        """`<stage>-<20 hex digits>`."""
        identity = {
            "stage": self.stage,
            "version": self.version,
            "seed": self.seed,
            "options": self.options,
            "inputs": {role: artifact.digest for role, artifact in self.inputs.items()},
            "sources": self.sources,
        }
        if self.max_shards:
            identity["max_shards"] = self.max_shards
        text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
        return f"{self.stage}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def content_digest(files: Mapping[str, str], parts: list[Artifact]) -> str:
    """Digest the names and digests of files, and the digests of parts in order."""
    lines = [f"{name} {sha}" for name, sha in sorted(files.items())]
    lines += [part.digest for part in parts]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
