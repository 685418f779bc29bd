"""What differs upstream of two artifacts that should be the same: options, inputs, code, libraries.

Both lineages are walked at once, along equal roles. Where two digests are equal nothing upstream can
make a difference, and the walk ends. A difference is a *first* one if nothing upstream of it differs.
"""

from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from typing import Any

from expandr_core.lineage.nodes import Lineage, Node
from expandr_core.lineage.options import ABSENT, but_for_new, differing, stage_defaults

Pair = tuple[Any, Any]
Keys = tuple[str, str]  # of an artifact in each of the two lineages
Below = dict[Keys, list[tuple[str, Keys]]]  # inputs that differ, with their roles
_FACTS = ("seed", "version", "commit", "python")


@dataclass(frozen=True)
class Difference:
    """How two artifacts in the same place differ, apart from inputs that differ themselves.

    Attributes:
        keys: of both.
        paths: of roles, from the number to here: a shortest one through each of its inputs.
        options: by path, within the stage.
        facts: seed, version of the stage, commit and Python, where they differ.
        libraries: by name, of both interpreters.
        sources: files read from outside the store, by name, with both digests.
        inputs: roles that only one has, with its key.
        machine: hardware and GPUs, where they differ; to be named where nothing else does.
        code_known: whether both manifests name a commit, without changes that nobody recorded.
        first: whether nothing upstream differs.
    """

    keys: Keys
    paths: list[tuple[str, ...]]
    options: dict[str, Pair] = field(default_factory=dict)
    facts: dict[str, Pair] = field(default_factory=dict)
    libraries: dict[str, Pair] = field(default_factory=dict)
    sources: dict[str, Pair] = field(default_factory=dict)
    inputs: dict[str, Pair] = field(default_factory=dict)
    machine: dict[str, Pair] = field(default_factory=dict)
    code_known: bool = True
    first: bool = False

    @property
    def stage(self) -> str:
        """The stage that made the first of both."""
        return self.keys[0].rpartition("-")[0]

    @property
    def known(self) -> bool:
        """Whether anything is known to differ."""
        return any((self.options, self.facts, self.libraries, self.sources, self.inputs))


def upstream_differences(
    before: Lineage, after: Lineage, keys: tuple[str, str]
) -> list[Difference]:
    """Return what differs upstream of two artifacts, and along which paths.

    Args:
        before: of the first artifact's store.
        after: of the second one's.
        keys: of the artifacts.

    Returns:
        Of two artifacts with the same inputs, options, code and libraries, but other bytes, a difference
        that is not `known`.
    """
    if before.node(keys[0]).manifest["digest"] == after.node(keys[1]).manifest["digest"]:
        return []
    below: Below = {}
    queue = [keys]
    for pair in queue:
        if pair not in below:
            below[pair] = _inputs_that_differ(before.node(pair[0]), after.node(pair[1]))
            queue += [inputs for _, inputs in below[pair]]
    paths = _paths(keys, below)
    own = {
        pair: _own(before.node(pair[0]), after.node(pair[1]), pair, ways)
        for pair, ways in paths.items()
    }
    differs: dict[Keys, bool] = {}
    inputs = {pair: [each for _, each in roles] for pair, roles in below.items()}
    for pair in TopologicalSorter(inputs).static_order():  # what is upstream comes first
        differs[pair] = (
            own[pair].known or not inputs[pair] or any(differs[each] for each in inputs[pair])
        )
    found = []
    for pair, difference in own.items():
        upstream = any(differs[each] for each in inputs[pair])
        if difference.known or not below[pair]:
            found.append(replace(difference, first=not upstream))
    return found


def _inputs_that_differ(one: Node, other: Node) -> list[tuple[str, Keys]]:
    """Return the roles of inputs with other content, and the keys of both."""
    if one.stage != other.stage:
        return []
    return [
        (role, (reference["key"], other.inputs[role]["key"]))
        for role, reference in one.inputs.items()
        if role in other.inputs and other.inputs[role]["digest"] != reference["digest"]
    ]


def _paths(keys: Keys, below: Below) -> dict[Keys, list[tuple[str, ...]]]:
    """Return how each pair is reached: a shortest path through each input of the number's artifact."""
    found: dict[Keys, list[tuple[str, ...]]] = {keys: [()]}
    for role, start in below[keys]:
        reached: dict[Keys, tuple[str, ...]] = {start: (role,)}
        queue = [start]
        for pair in queue:
            for name, inputs in below[pair]:
                if inputs not in reached:
                    reached[inputs] = (*reached[pair], name)
                    queue.append(inputs)
        for pair, path in reached.items():
            found.setdefault(pair, []).append(path)
    return {pair: sorted(paths, key=len) for pair, paths in found.items()}


def _own(one: Node, other: Node, keys: Keys, paths: list[tuple[str, ...]]) -> Difference:
    """Compare two manifests, without the inputs that both have."""
    if one.stage != other.stage:
        return Difference(keys, paths, inputs={"made by": (one.stage, other.stage)})
    manifests = one.manifest, other.manifest
    defaults = stage_defaults(one.stage)
    options = but_for_new(differing(*(each.get("options", {}) for each in manifests)), defaults)
    facts = {name: (manifests[0].get(name), manifests[1].get(name)) for name in _FACTS}
    machines = {
        "hardware": (manifests[0].get("hardware"), manifests[1].get("hardware")),
        "GPUs": (_gpus(one), _gpus(other)),
    }
    roles = {
        role: tuple(each.get(role, {}).get("key", ABSENT) for each in (one.inputs, other.inputs))
        for role in dict.fromkeys([*one.inputs, *other.inputs])
    }
    return Difference(
        keys,
        paths,
        options,
        facts={name: pair for name, pair in facts.items() if _differ(*pair)},
        libraries=_libraries(one, other),
        sources=differing(*(each.get("sources", {}) for each in manifests)),
        inputs={role: (a, b) for role, (a, b) in roles.items() if ABSENT in (a, b)},
        machine={name: pair for name, pair in machines.items() if _differ(*pair)},
        code_known=not any(
            (each.get("commit") or "-dirty").endswith("-dirty") for each in manifests
        ),
    )


def _libraries(one: Node, other: Node) -> dict[str, Pair]:
    """Return the libraries of both interpreters that differ.

    One that is absent from either counts only within a commit, whose list of libraries is the same.
    """
    found = {}
    for interpreter, mark in (("libraries", ""), ("vllm_libraries", " (vLLM's)")):
        versions = (each.manifest.get(interpreter, {}) for each in (one, other))
        found |= {f"{name}{mark}": pair for name, pair in differing(*versions).items()}
    commits = [each.manifest.get("commit") for each in (one, other)]
    same_list = bool(commits[0]) and commits[0] == commits[1]
    return {name: pair for name, pair in found.items() if same_list or ABSENT not in pair}


def _gpus(node: Node) -> str | None:
    """Name the GPUs that a stage used; None if that was not recorded."""
    gpus = node.manifest.get("gpus")
    return None if gpus is None else ", ".join(gpus) or "none"


def _differ(one: Any, other: Any) -> bool:
    """Tell whether two facts are known and differ; earlier versions recorded fewer."""
    return one != other and not {None, ""} & {one, other}
