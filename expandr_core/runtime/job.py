"""What a stage program works with."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.claims import Claims
from expandr_core.store.store import Store

FETCHED_AT_ONCE = 8  # shards
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
        claims: of a run that shares the shards with others; None for one that makes the artifact.
        found: shards that are known to be whole, by key.
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
    claims: Claims | None = None
    found: Mapping[str, Artifact] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.spec.seed

    def includes(self, number: int) -> bool:
        """Tell whether the artifact has the shard with that number."""
        return not 0 < self.spec.max_shards <= number

    def takes(self, number: int) -> bool:
        """Tell whether this run makes the shard with that number; ask right before it does."""
        return self.includes(number) and (self.claims is None or self.claims.take(number))

    def shards(self, role: str) -> Iterator[Path]:
        """Yield the local folders of a sharded input one at a time, and fetch the next meanwhile."""
        waiting = iter(self.store.shards(self.spec.inputs[role]))
        ahead: deque[tuple[Artifact, Future[Path]]] = deque()
        with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:

            def fetch(count: int) -> None:
                for shard in islice(waiting, count):
                    ahead.append((shard, pool.submit(self.store.local, shard)))

            fetch(FETCHED_AT_ONCE)
            try:
                while ahead:
                    yield ahead[0][1].result()
                    self.store.release(ahead.popleft()[0])
                    fetch(1)
            finally:
                for shard, fetched in ahead:
                    if not fetched.cancel() and not fetched.exception():
                        self.store.release(shard)

    @contextlib.contextmanager
    def all_shards(self, role: str) -> Iterator[list[Path]]:
        """Hold the local folders of all shards of an input, to read them more than once."""
        with contextlib.ExitStack() as held:

            def fetch(shard: Artifact) -> Path:
                folder = self.store.local(shard)
                held.callback(self.store.release, shard)
                return folder

            with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
                folders = list(pool.map(fetch, self.store.shards(self.spec.inputs[role])))
            yield folders
