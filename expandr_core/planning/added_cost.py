"""What each of several runs has cost beyond the ones before it, which share artifacts with it."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store


class AddedCost(NamedTuple):
    """What was made for one run, and not for one before it.

    Attributes:
        made: how many artifacts that were.
        artifacts: how many the run has used in all.
        seconds: that making them took, whoever made them and when.
        tokens: that the language model wrote.
    """

    made: int = 0
    artifacts: int = 0
    seconds: float = 0
    tokens: int = 0


def added_costs(store: Store, runs: Mapping[str, Iterable[Artifact]]) -> dict[str, AddedCost]:
    """Attribute every artifact to the first run that uses it; return the runs' costs by name.

    A sharded artifact costs what its shards cost, each counted once. An artifact that is gone by now
    costs nothing.
    """
    seen: set[str] = set()
    costs = {}
    for name, artifacts in runs.items():
        keys = dict.fromkeys(artifact.key for artifact in artifacts)
        new = [key for key in keys if key not in seen]
        facts = [fact for key in new for fact in _facts(store, key, seen)]
        seconds, tokens = (sum(each[n] for each in facts) for n in (0, 1))
        costs[name] = AddedCost(len(new), len(keys), seconds, int(tokens))
    return costs


def _facts(store: Store, key: str, seen: set[str]) -> list[tuple[float, float]]:
    """Return seconds and tokens of an artifact, or of those of its shards that are not seen yet."""
    if key in seen:
        return []
    seen.add(key)
    try:
        manifest = store.manifest(key)
    except FileNotFoundError:
        return []
    if manifest["parts"]:
        return [fact for part in manifest["parts"] for fact in _facts(store, part["key"], seen)]
    written = manifest["counts"].get("tokens", 0) if key.startswith("expand") else 0
    return [(manifest.get("seconds", 0), written)]
