"""A registered model: versions, the aliases that name them, and every move of an alias."""

import re
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from expandr_core.errors import DataError
from expandr_core.store.artifacts import Artifact

SCHEMA = 1  # of a model's file
CHAMPION, CANDIDATE = "champion", "candidate"
KEPT_BEFORE = 2  # versions that an alias named before and that `expandr gc` keeps, to roll back to
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
Action = Literal["promoted", "rolled back", "refused"]


class Author(NamedTuple):
    """Who moves an alias, and why; `gate` has the numbers that decided it."""

    actor: str
    reason: str
    gate: dict[str, Any] | None = None


class Version(BaseModel):
    """What a run kept; `models` has its artifacts by role, such as llm, retriever, corpus and index."""

    model_config = ConfigDict(frozen=True)
    number: int = 0
    run: str
    models: dict[str, Artifact]
    tags: dict[str, str] = {}
    created: datetime
    actor: str


class Move(BaseModel):
    """What happened to an alias: from version `before` to `after` (0 is none), or refused to move.

    `gate` has the numbers of the test that decided it, if there was one.
    """

    model_config = ConfigDict(frozen=True)
    at: datetime
    alias: str
    action: Action
    before: int
    after: int
    reason: str
    actor: str
    gate: dict[str, Any] = {}


class RegisteredModel(BaseModel):
    """The versions, aliases and history under one name, oldest first."""

    model_config = ConfigDict(frozen=True)
    schema_number: int = Field(default=SCHEMA, alias="schema", le=SCHEMA)
    name: str
    versions: list[Version] = []
    aliases: dict[str, int] = {}
    history: list[Move] = []

    def version(self, number: int) -> Version:
        """Return a version by its number.

        Raises:
            DataError: if there is none.
        """
        found = [each for each in self.versions if each.number == number]
        if not found:
            raise DataError(
                f"the model {self.name} has no version {number}, only {len(self.versions)}; "
                "`expandr models` lists them"
            )
        return found[0]

    def at(self, alias: str) -> Version | None:
        """Return the version that an alias names, if any."""
        return self.version(self.aliases[alias]) if alias in self.aliases else None

    def line(self, alias: str) -> list[int]:
        """Return the versions that an alias can be rolled back to, and last the one that it names."""
        line: list[int] = []
        for move in (each for each in self.history if each.alias == alias):
            if move.action == "promoted":
                line.append(move.after)
            elif move.action == "rolled back":
                line = line[: len(line) - line[::-1].index(move.after)]
        return line

    def kept(self) -> list[Version]:
        """Return what garbage collection keeps: what aliases name, and KEPT_BEFORE versions before."""
        numbers = {*self.aliases.values()}
        numbers |= {n for alias in self.aliases for n in self.line(alias)[-1 - KEPT_BEFORE :]}
        return [each for each in self.versions if each.number in numbers]

    def with_version(self, new: Version) -> tuple["RegisteredModel", int]:
        """Add a version, unless the run has one with the same artifacts; return its number too."""
        for each in self.versions:
            if (each.run, each.models) == (new.run, new.models):
                tagged = each.model_copy(update={"tags": each.tags | new.tags})
                versions = [tagged if old is each else old for old in self.versions]
                return self.model_copy(update={"versions": versions}), each.number
        number = len(self.versions) + 1
        versions = [*self.versions, new.model_copy(update={"number": number})]
        return self.model_copy(update={"versions": versions}), number

    def moved(self, alias: str, action: Action, number: int, author: Author) -> "RegisteredModel":
        """Move an alias to a version, or note that it was refused."""
        move = Move(
            at=datetime.now(UTC),
            alias=alias,
            action=action,
            before=self.aliases.get(alias, 0),
            after=number,
            actor=author.actor,
            reason=author.reason,
            gate=author.gate or {},
        )
        aliases = self.aliases if action == "refused" else self.aliases | {alias: number}
        return self.model_copy(update={"aliases": aliases, "history": [*self.history, move]})


def is_name(text: str) -> bool:
    """Tell whether a text can name a model or an alias: small letters, digits and _.-, a letter first.

    >>> is_name("champion"), is_name("latest"), is_name("../x"), is_name("3")
    (True, False, False, False)
    """
    return _NAME.fullmatch(text) is not None and text != "latest"


def model_name(text: str) -> str:
    """Name a model after its collection, a name or the last part of its path.

    >>> model_name("s3://bucket/SciFact/"), model_name("2024 news.jsonl"), model_name("latest")
    ('scifact', 'm2024-news', 'mlatest')
    """
    last = text.rstrip("/").rpartition("/")[2].lower().removesuffix(".jsonl")
    name = re.sub(r"[^a-z0-9_.-]+", "-", last)[:60]
    return name if is_name(name) else f"m{name}"
