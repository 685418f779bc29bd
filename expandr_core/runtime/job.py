"""What a stage program works with."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store

Progress = Callable[[int, int, str], None]  # done, total, unit


def no_progress(done: int, total: int, unit: str) -> None:
    """Report to nobody."""


@dataclass
class Job:
    """One run of a stage program: where it reads, where it writes, whom it tells.

    Attributes:
        spec: the specification of the artifact.
        options: the stage's options, an instance of the module's OPTIONS.
        inputs: local path of each input artifact (a folder, or the one file referred to), downloaded
            on first access.
        out: folder for the artifact's files.
        checkpoints: folder that survives a kill and is deleted at commit.
        store: for stages that read or write shards.
        progress: reports (done, total, unit).
        counts: numbers for the manifest: rows, rows dropped by reason, measures.
        made_shards: the shards that belong to the artifact.
        slice: (i, n) to make only the shards whose number modulo n is i; None to make all.
    """

    spec: StageSpec
    options: Any
    inputs: Mapping[str, Path]
    out: Path
    checkpoints: Path
    store: Store
    progress: Progress
    counts: dict[str, float] = field(default_factory=dict)
    made_shards: list[Artifact] = field(default_factory=list)
    slice: tuple[int, int] | None = None

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.spec.seed

    def takes(self, number: int) -> bool:
        """Tell whether this job makes the shard with that number."""
        if 0 < self.spec.max_shards <= number:
            return False
        return self.slice is None or number % self.slice[1] == self.slice[0]

    def shards(self, role: str) -> Iterator[Path]:
        """Yield the local folders of a sharded input, one at a time."""
        for shard in self.store.shards(self.spec.inputs[role]):
            yield self.store.local(shard)
            self.store.release(shard)

    @contextlib.contextmanager
    def all_shards(self, role: str) -> Iterator[list[Path]]:
        """Hold the local folders of all shards of an input, to read them more than once."""
        with contextlib.ExitStack() as held:
            folders = []
            for shard in self.store.shards(self.spec.inputs[role]):
                folders.append(self.store.local(shard))
                held.callback(self.store.release, shard)
            yield folders
