"""Claims: of the runs that share the shards of a stage, which makes which.

A run claims a shard by its number before it reads the shard's rows, and leaves a mark with the shard's
key when it has made or found it. Whoever comes late thus makes what nobody makes yet. A claim ends with
its holder: in a local store it is a lock that the operating system frees, on S3 a lease that expires.

Claims and marks save work; they decide nothing. A mark counts only if its shard is whole, and two runs
that make the same shard write the same artifact. Marks go when the stage is put together, or as garbage.
"""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from expandr_core.store.artifacts import Artifact
from expandr_core.store.filesystems import flock, partial_file
from expandr_core.store.store import Store

_AT_ONCE = 32
_MARK = ".made"
_FIRST_POLL, _LONGEST_POLL = 0.5, 5.0  # seconds


class Claims:
    """The shards of one stage, as one of the runs sees them that share the work."""

    def __init__(self, store: Store, name: str, shards: int):
        """Begin; nothing is claimed yet.

        Args:
            store: where the shards are.
            name: of the work that is shared; runs with the same name share it.
            shards: the maximum number of shards.
        """
        self._store, self._name = store, name
        self._left = set(range(shards))  # not made, as far as we know
        self._asked: set[int] = set()  # numbers that the stage has come to
        self._taken: dict[int, str] = {}  # ETags of leases, or "", when we last looked
        self._first_pass = True
        self._held: dict[int, contextlib.ExitStack] = {}
        self._old = read_marks(store, name)  # to be verified

    def __enter__(self) -> "Claims":
        """Return the claims."""
        return self

    def __exit__(self, *error: object) -> None:
        """Give up what is claimed and not made."""
        while self._held:
            self._held.popitem()[1].close()

    def one_is_free(self) -> bool:
        """Claim a shard that nobody makes, once there is one; return False when all are made."""
        poll = _FIRST_POLL
        while True:
            self._drop_old()
            self._look()
            if any(self._claim(number) for number in sorted(self._left)):
                return True
            if not self._left:
                return False
            time.sleep(poll)
            poll = min(1.5 * poll, _LONGEST_POLL)

    def take(self, number: int) -> bool:
        """Claim a shard; return False if another run has it, or it is made."""
        self._asked.add(number)
        if self._first_pass and number in self._taken:  # later we ask whether its run is dead
            return number in self._held
        return number in self._held or (number in self._left and self._claim(number))

    def made(self, number: int, shard: Artifact) -> None:
        """Mark a shard as made or found, and let go of it."""
        path = f"{_folder(self._store, self._name)}/{number}{_MARK}"
        if self._store.is_local:
            with partial_file(Path(path)) as partial:
                partial.write_text(shard.key)
        else:
            self._store.filesystem.pipe_file(path, shard.key.encode())
        self._left.discard(number)
        if number in self._held:
            self._held.pop(number).close()

    def end_pass(self) -> None:
        """Note that the stage has come to all its shards: other numbers it does not have."""
        self._left &= self._asked
        self._first_pass = False
        self.__exit__()

    def _claim(self, number: int) -> bool:
        claim = contextlib.ExitStack()
        if claim.enter_context(_claimed(self._store, self._name, number)):
            self._look()
            if number in self._left and self._is_ours(number):
                self._held[number] = claim
                return True
        claim.close()
        return False

    def _look(self) -> None:
        """See what others have claimed and made since."""
        marked, self._taken = _numbers(self._store, self._name)
        self._left -= marked - set(self._old)
        for number, sign in self._taken.items():
            if sign and number in self._left:
                self._store.leases.watch(f"{self._name}/{number}", sign)

    def _is_ours(self, number: int) -> bool:
        """Tell whether a claim was not overwritten at once: not all servers keep two writers apart."""
        sign = self._taken.get(number, "")
        return not sign or self._store.leases.owns(f"{self._name}/{number}", sign)

    def _drop_old(self) -> None:
        """Leave out what was made before this run began, if it is whole."""
        old = {number: key for number, key in self._old.items() if number in self._left}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = pool.map(self._store.lookup, old.values())
            self._left -= {number for number, shard in zip(old, found, strict=True) if shard}


def read_marks(store: Store, name: str) -> dict[int, str]:
    """Return the keys of the shards that runs have marked as made, by number."""
    numbers = sorted(_numbers(store, name)[0])

    def read(number: int) -> str:
        with contextlib.suppress(FileNotFoundError):
            content: Any = store.filesystem.cat_file(f"{_folder(store, name)}/{number}{_MARK}")
            return content.decode(errors="replace")
        return ""

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(numbers, pool.map(read, numbers), strict=True))


def find_marked(store: Store, name: str, only_of: str) -> dict[str, Artifact]:
    """Return the marked shards that are whole, by key; see `Store.lookup`."""
    keys = [key for key in read_marks(store, name).values() if key]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda key: store.lookup(key, only_of), keys)
        return {shard.key: shard for shard in found if shard}


def drop_marks(store: Store, name: str) -> None:
    """Forget what was claimed and made: the stage is put together."""
    with contextlib.suppress(FileNotFoundError):
        store.filesystem.rm(_folder(store, name), recursive=True)


def _folder(store: Store, name: str) -> str:
    return f"{store.root}/locks/{name}"


def _numbers(store: Store, name: str) -> tuple[set[int], dict[int, str]]:
    """Return the numbers that are marked, and those that are claimed with their lease's ETag."""
    try:
        found: Any = store.filesystem.ls(_folder(store, name), detail=True)
    except FileNotFoundError:
        return set(), {}
    signs = {each["name"].rpartition("/")[2]: each.get("ETag", "") for each in found}
    marks = {each.removesuffix(_MARK) for each in signs if each.endswith(_MARK)}
    claims = {int(each): sign for each, sign in signs.items() if each.isdecimal()}
    return {int(each) for each in marks if each.isdecimal()}, claims


@contextlib.contextmanager
def _claimed(store: Store, name: str, number: int) -> Iterator[bool]:
    """Hold a claim, unless another run has it; yield whether it is held."""
    here = Path(_folder(store, name), str(number))
    lock = here if store.is_local else store.scratch / "locks" / f"{name}-{number}"
    with flock(lock, wait=False) as free:
        if not free or store.is_local:
            yield free
            return
        with store.leases.hold(f"{name}/{number}", wait=False) as held:
            yield held
