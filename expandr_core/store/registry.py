"""Registry: versions of what runs have made, and the aliases by which people and programs name them.

A registered model has a name, by default that of its collection, and one file, `models/NAME.json`. A
version of it is the language model, the retriever, the corpus and whatever else a run kept. An alias
such as "champion" names a version; every move of it is in the history, with who moved it, why, and the
numbers of the test. The file is replaced as a whole, and only if nobody has written since it was read.
It names artifacts by their keys, so that a store that was moved serves the same models.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from expandr_core.errors import DataError, first_line
from expandr_core.store.filesystems import STORE_REMEDY, explain_full_disk, flock, partial_file
from expandr_core.store.registered_model import (
    CANDIDATE,
    CHAMPION,
    Author,
    RegisteredModel,
    Version,
    is_name,
)
from expandr_core.store.run_records import record_names
from expandr_core.store.store import Store

MODELS = "models"  # folder in the store
_POLL = 0.5  # seconds


class Overtaken(Exception):
    """An alias was moved meanwhile: what was decided about it was decided about another version."""


def registered(store: Store) -> dict[str, RegisteredModel]:
    """Return every registered model by name.

    Raises:
        DataError: if a file cannot be understood.
    """
    names = record_names(store.filesystem, f"{store.root}/{MODELS}")
    return {name: read_model(store, name) for name in names}


def kept(store: Store) -> tuple[set[str], set[str]]:
    """Return the runs and keys of all versions that aliases name, or can be rolled back to."""
    versions = [version for model in registered(store).values() for version in model.kept()]
    keys = {each.key for version in versions for each in version.models.values()}
    return {version.run for version in versions}, keys


def read_model(store: Store, name: str) -> RegisteredModel:
    """Return a registered model; one without versions if there is none of that name."""
    return _read(store, name).model


def promote(
    store: Store, name: str, version: Version, alias: str, author: Author
) -> RegisteredModel:
    """Let an alias name what a run kept, as a new version unless the run has one already.

    If it names that version, the history stays as it is; a version gets its new tags nevertheless.

    Args:
        store: that has the artifacts.
        name: of the model.
        version: the new one; its number is given here.
        alias: that moves.
        author: who moves it, and why.

    Raises:
        DataError: if a name cannot be one, or one of the version's artifacts is not whole.
    """
    for what, text in (("a model", name), ("an alias", alias)):
        if not is_name(text):
            raise DataError(
                f"{text!r} cannot name {what}; use small letters, digits and _.-, a letter "
                "first, and not 'latest'"
            )

    def change(model: RegisteredModel) -> RegisteredModel:
        model, number = model.with_version(version)
        named = model.aliases.get(alias) == number
        return model if named else model.moved(alias, "promoted", number, author)

    _require_whole(store, version)
    return _change(store, name, change)


def roll_back(store: Store, name: str, alias: str, author: Author, to: int = 0) -> RegisteredModel:
    """Let an alias name an earlier version again: the one before, or `to`.

    Raises:
        DataError: if it never named one, or that is not whole any more.
    """

    def change(model: RegisteredModel) -> RegisteredModel:
        earlier = [each for each in model.line(alias) if each != model.aliases[alias]]
        number = to or (earlier[-1] if earlier else 0)
        if number not in earlier:
            named = ", ".join(map(str, dict.fromkeys(earlier))) or "none"
            raise DataError(
                f"{name}/{alias} cannot be rolled back{f' to version {to}' if to else ''}; the versions "
                f"that it named before: {named} (`expandr models {name}` shows its history)"
            )
        _require_whole(store, model.version(number))
        return model.moved(alias, "rolled back", number, author)

    return _change(store, name, change)


def judge(
    store: Store, name: str, version: Version, tested_against: int, passed: bool, author: Author
) -> RegisteredModel:
    """Note what a gate has found: a version becomes the champion, or is refused.

    Either way the alias `candidate` names it from now on.

    Args:
        store: that has the artifacts.
        name: of the model.
        version: the candidate; its number is given here.
        tested_against: the version that was champion during the test; 0 for none.
        passed: whether the candidate becomes the champion.
        author: the gate, its reason and its numbers.

    Raises:
        Overtaken: if the champion is another one by now.
    """

    def change(model: RegisteredModel) -> RegisteredModel:
        model, number = model.with_version(version)
        champion = model.aliases.get(CHAMPION, 0)
        if champion != tested_against:
            raise Overtaken(f"version {champion} of {name} is the champion now")
        model = model.moved(CHAMPION, "promoted" if passed else "refused", number, author)
        return model.model_copy(update={"aliases": model.aliases | {CANDIDATE: number}})

    _require_whole(store, version)
    return _change(store, name, change)


def find_version(store: Store, name: str) -> tuple[str, Version] | None:
    """Find a version by ALIAS, MODEL/ALIAS or MODEL/NUMBER; return the model's name too, or None.

    Raises:
        DataError: if several models have that alias.
    """
    where, _, what = name.rpartition("/")
    models = registered(store) if is_name(where or what) else {}
    if where and where in models and what.isdecimal():
        return where, models[where].version(int(what))
    found = {
        each: version
        for each, model in models.items()
        if where in ("", each) and (version := model.at(what))
    }
    if len(found) > 1:
        raise DataError(
            f"several models have the alias {what!r}; name one of them: "
            f"{', '.join(f'{each}/{what}' for each in found)}"
        )
    return next(iter(found.items()), None)


def _require_whole(store: Store, version: Version) -> None:
    runs = record_names(store.filesystem, f"{store.root}/runs")
    lost = [each.key for each in version.models.values() if not store.lookup(each.key)]
    if version.run not in runs:
        lost.insert(0, f"the record of run {version.run}")
    if lost:
        raise DataError(
            f"run {version.run} is no longer whole: {', '.join(lost)} is missing or damaged; run the "
            "loop again, and promote that run"
        )


def run_named(store: Store, name: str) -> str:
    """Return the run of the version that a name stands for (see `find_version`), or else the name."""
    found = find_version(store, name)
    return found[1].run if found else name


class _Read(NamedTuple):
    """A model as it was read: its file's content and, on S3, ETag; both are "" if there is none."""

    model: RegisteredModel
    content: bytes = b""
    etag: str = ""


def _path(store: Store, name: str) -> str:
    return f"{store.root}/{MODELS}/{name}.json"


def _read(store: Store, name: str) -> _Read:
    path = _path(store, name)
    try:
        etag: Any = "" if store.is_local else store.filesystem.info(path)["ETag"]
        content: Any = store.filesystem.cat_file(path)
    except FileNotFoundError:
        return _Read(RegisteredModel(name=name))
    try:
        return _Read(RegisteredModel.model_validate_json(content), content, etag)
    except ValidationError as error:
        raise DataError(
            f"{path}: not a registered model that this version reads ({first_line(error)}); use the "
            "version that wrote it, or restore the file"
        ) from error


def _change(
    store: Store, name: str, change: Callable[[RegisteredModel], RegisteredModel]
) -> RegisteredModel:
    """Move an alias of a model, again from what is there if somebody else has written meanwhile."""
    while True:
        read = _read(store, name)
        changed = change(read.model)
        if _write_over(store, name, read, changed):
            return changed


def _write_over(store: Store, name: str, read: _Read, changed: RegisteredModel) -> bool:
    """Replace a model's file as a whole, unless it has changed since it was read.

    On S3 a lease keeps others from trying in vain, and the condition decides. What is there afterwards
    tells who wrote: a response may be lost, and not all servers keep two writers apart.
    """
    path, content = _path(store, name), changed.model_dump_json(by_alias=True, indent=1).encode()
    with _alone(store, name):
        if store.is_local:
            if _read(store, name).content != read.content:
                return False
            folder = Path(path).parent
            with explain_full_disk(folder, STORE_REMEDY), partial_file(Path(path)) as partial:
                partial.write_bytes(content)
            return True
        from expandr_core.store.s3 import write_if

        condition = {"IfMatch": read.etag} if read.etag else {"mode": "create"}
        if store.leases.lacking():
            condition = {}
            if _read(store, name).content != read.content:
                return False
        write_if(store.filesystem, path, content, **condition)
        return changed.history[-1] in _read(store, name).model.history


@contextlib.contextmanager
def _alone(store: Store, name: str) -> Iterator[None]:
    """Keep others from a model while its file is replaced."""
    lock = f"{MODELS}-{name}"
    with flock(Path(store.root if store.is_local else store.scratch, "locks", lock)):
        if store.is_local:
            yield
            return
        while True:
            with store.leases.hold(lock, wait=False) as held:
                if held and store.leases.owns(lock, ""):
                    yield
                    return
            time.sleep(_POLL)
