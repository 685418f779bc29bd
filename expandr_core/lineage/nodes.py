"""What lies upstream of an artifact: one node per manifest, back to the data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from expandr_core.errors import DataError
from expandr_core.store.manifests import DamagedArtifact
from expandr_core.store.run_records import RecordedRun
from expandr_core.store.store import Store

_TO_CORPUS = ("embeddings", "index", "expanded", "alone")  # roles that lead to what was searched
ADAPTERS = ("dpo", "kto", "sft", "import_adapter")


@dataclass(frozen=True)
class Node:
    """An artifact, and how it came to be.

    Attributes:
        key: of the artifact.
        manifest: as it was written.
        title: of the run's step that made or found it; "" if none did.
        cost: of the stage with all of its shards.
    """

    key: str
    manifest: Mapping[str, Any] = field(repr=False)
    title: str
    cost: "Cost"

    @property
    def stage(self) -> str:
        """The stage that ran."""
        return self.key.rpartition("-")[0]

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """References to the artifacts that it was made from, by role."""
        return self.manifest.get("inputs", {})

    def files(self) -> list[dict[str, Any]]:
        """Return the artifact's own files, with digests."""
        return self.manifest["files"]


@dataclass(frozen=True)
class Cost:
    """What a stage took.

    Attributes:
        seconds: of the stage, or of all of its shards together.
        gpu_hours: that GPUs were in use for, each counted; None if not recorded.
        tokens: written or trained on; None if the stage counts none.
        bytes: of the files.
        peak_memory: in bytes, of the largest process; None if not recorded.
    """

    seconds: float
    gpu_hours: float | None
    tokens: float | None
    bytes: int
    peak_memory: int | None

    def plain(self) -> dict[str, Any]:
        """Return the values as JSON has them."""
        return dict(vars(self))


class Lineage:
    """The manifests of a store, read once each."""

    def __init__(self, store: Store, run: RecordedRun | None = None):
        """Look into a store; a run gives its artifacts their titles."""
        self.store = store
        self._titles: dict[str, str] = {}
        for step in run.steps if run else []:
            self._titles.setdefault(step.artifact.key, step.title)
        self._nodes: dict[str, Node] = {}

    def node(self, key: str) -> Node:
        """Return an artifact's node.

        Raises:
            DamagedArtifact: if it is gone, with everything that tells of it.
        """
        if key not in self._nodes:
            try:
                manifest = self.store.manifest(key)
            except FileNotFoundError as error:
                raise DamagedArtifact(f"{key} is not in {self.store.url} any more") from error
            self._nodes[key] = Node(key, manifest, self._titles.get(key, ""), self._cost(manifest))
        return self._nodes[key]

    def upstream(self, keys: Iterable[str]) -> list[Node]:
        """Return artifacts and everything that they were made from, each after its inputs."""
        found: dict[str, Node] = {}
        open_keys = [(key, False) for key in reversed(list(keys))]
        while open_keys:
            key, inputs_done = open_keys.pop()
            if key in found:
                continue
            node = self.node(key)
            if inputs_done:
                found[key] = node
                continue
            open_keys.append((key, True))
            open_keys += [(each["key"], False) for each in reversed(node.inputs.values())]
        return list(found.values())

    def first(self, key: str, stages: Iterable[str], roles: Iterable[str] = ()) -> Node | None:
        """Return the nearest artifact of some stages, along all inputs or those with some roles."""
        queue, seen = [key], {key}
        for each in queue:
            node = self.node(each)
            if node.stage in stages:
                return node
            for role, reference in node.inputs.items():
                if (not roles or role in roles) and reference["key"] not in seen:
                    seen.add(reference["key"])
                    queue.append(reference["key"])
        return None

    def corpus_of(self, evaluation: str) -> dict[str, Any]:
        """Refer to the corpus that an evaluation searched, by itself or through vectors and indices.

        Raises:
            DataError: if its manifest leads to none.
        """
        queue = [evaluation]
        for key in queue:
            inputs = self.node(key).inputs
            if "corpus" in inputs:
                return inputs["corpus"]
            queue += [inputs[role]["key"] for role in _TO_CORPUS if role in inputs]
        raise DataError(f"{evaluation}: its manifest leads to no corpus")

    def _cost(self, manifest: Mapping[str, Any]) -> Cost:
        parts = manifest["parts"]
        if not parts:
            return _cost_of(manifest)
        costs = [_cost_of(self.store.manifest(part["key"])) for part in parts]
        own = _cost_of(manifest)
        hours = [each.gpu_hours for each in costs if each.gpu_hours is not None]
        peaks = [each.peak_memory for each in (own, *costs) if each.peak_memory is not None]
        return Cost(
            sum(each.seconds for each in costs),
            sum(hours) if len(hours) == len(costs) else None,
            own.tokens,
            own.bytes + sum(each.bytes for each in costs),
            max(peaks, default=None),
        )


def _cost_of(manifest: Mapping[str, Any]) -> Cost:
    """Read the cost of one manifest; older ones do not tell GPUs and memory."""
    seconds, gpus = manifest.get("seconds", 0.0), manifest.get("gpus")
    return Cost(
        seconds,
        None if gpus is None else len(gpus) * seconds / 3600,
        manifest["counts"].get("tokens"),
        sum(file["size"] for file in manifest["files"]),
        manifest.get("peak_memory", {}).get("bytes"),
    )


def total(nodes: Iterable[Node]) -> Cost:
    """Add up costs."""
    costs = [node.cost for node in nodes]
    hours = [each.gpu_hours for each in costs if each.gpu_hours is not None]
    peaks = [each.peak_memory for each in costs if each.peak_memory is not None]
    return Cost(
        sum(each.seconds for each in costs),
        sum(hours) if len(hours) == len(costs) else None,
        sum(each.tokens or 0 for each in costs),
        sum(each.bytes for each in costs),
        max(peaks, default=None),
    )
