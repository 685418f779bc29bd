"""The lineage of a report as a graph that fits a page: artifacts of one kind are one node.

Artifacts are grouped by stage, round and purpose; if these are too many by phase and round, or by stage.
Layers run from the data to the report; the order within a layer is that of the neighbours (Sugiyama's
barycentres).
"""

import itertools
import re
from typing import Any

from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.nodes import Node, total
from expandr_core.reports.costs import name_of
from expandr_core.store.run_records import StepId

MOST_NODES = 40
_SWEEPS = 12
_BEND = 0.16  # width of an edge that passes a layer, in nodes
MEASURE = "measure systems"
_MEASURING = ("bm25_index", "evaluate_bm25", "evaluate", "audit")
_PHASES = {  # of a round, by stage or by the purpose of texts and vectors; the rest measures
    **dict.fromkeys(("candidates", "answers", "reward", "pairs"), "write and reward texts"),
    **dict.fromkeys(("dpo", "kto", "sft", "merge"), "align the LLM"),
    **dict.fromkeys(("training", "mine", "train_retriever"), "train the retriever"),
}
_TEXTS = {
    "candidates": "candidates",
    "answers": "answers",
    "training": "texts for training",
    "choose": "texts for dev",
}
Group = tuple[str, int, str]  # stage, round, purpose
Edges = set[tuple[Group, Group]]


def graph_of(run: ComparedRun) -> dict[str, Any]:
    """Return nodes and edges of everything upstream of the report.

    Returns:
        `nodes`: id, title, stage, round, artifacts, seconds, layer, column; `edges`: pairs of ids,
        without those that a longer way replaces; `bends`: layer and column where each edge passes
        the layers between.
    """
    nodes = run.lineage.upstream([run.run.report.key])
    steps: dict[str, StepId] = {}
    for step in run.run.steps:
        steps.setdefault(step.artifact.key, step.id)
    levels = ({n.key: _group(n, steps.get(n.key), level) for n in nodes} for level in range(2))
    coarsest = {node.key: _group(node, None, 2) for node in nodes}
    group_of = next((each for each in levels if len(set(each.values())) <= MOST_NODES), coarsest)
    members: dict[Group, list[Node]] = {}
    for node in nodes:
        members.setdefault(group_of[node.key], []).append(node)
    edges = {
        (group_of[each["key"]], group_of[node.key])
        for node in nodes
        for each in node.inputs.values()
        if group_of[each["key"]] != group_of[node.key]
    }
    layers = _layers(list(members), edges)
    ways = _ways(layers, _reduced(edges))
    columns = _columns(layers | {bend: bend[1] for way in ways for bend in way[1:-1]}, ways)
    names = {group: f"n{number}" for number, group in enumerate(members)}
    return {
        "nodes": [
            {
                "id": names[group],
                "title": _title(group),
                "stage": group[0],
                "round": group[1],
                "artifacts": len(found),
                "seconds": total(found).seconds,
                "layer": layers[group],
                "column": columns[group],
            }
            for group, found in members.items()
        ],
        "edges": [(names[way[0]], names[way[-1]]) for way in ways],
        "bends": [[(bend[1], columns[bend]) for bend in way[1:-1]] for way in ways],
        "artifacts": len(nodes),
    }


def _group(node: Node, step: StepId | None, level: int) -> Group:
    """Say to which group an artifact belongs; each level is coarser than the one before."""
    stage = node.stage
    if step is None or level == 2:
        return stage, 0, ""
    if stage in _MEASURING:
        return MEASURE, step.round, ""
    purpose = step.name.partition("/")[0] if stage in ("expand", "encode") else ""
    if level == 0:
        return stage, step.round, purpose
    phase = _PHASES.get(purpose or stage, MEASURE if purpose else stage)
    return phase, step.round, ""


def _title(group: Group) -> str:
    stage, _, purpose = group
    if stage == "expand" and purpose:
        return _TEXTS.get(purpose, f"texts for {purpose}")
    return name_of(stage)


def _layers(groups: list[Group], edges: Edges) -> dict[Group, int]:
    """Return how many steps each group is from the data, along the longest way; circles are cut."""
    inputs: dict[Group, list[Group]] = {group: [] for group in groups}
    for one, other in sorted(edges):
        inputs[other].append(one)
    found: dict[Group, int] = {}

    def layer(group: Group, above: tuple[Group, ...]) -> int:
        if group not in found:
            before = [each for each in inputs[group] if each not in above and each != group]
            found[group] = 1 + max((layer(each, (*above, group)) for each in before), default=-1)
        return found[group]

    for group in groups:
        layer(group, ())
    return found


def _reduced(edges: Edges) -> Edges:
    """Leave out each edge whose ends are connected by a longer way, too.

    >>> a, b, c = ("a", 0, ""), ("b", 0, ""), ("c", 0, "")
    >>> _reduced({(a, b), (b, c), (a, c)}) == {(a, b), (b, c)}
    True
    """
    after: dict[Group, set[Group]] = {}
    for one, other in edges:
        after.setdefault(one, set()).add(other)

    def reached(start: Group, seen: set[Group]) -> set[Group]:
        for each in after.get(start, ()):
            if each not in seen:
                seen.add(each)
                reached(each, seen)
        return seen

    beyond = {group: reached(group, set()) for group in after}
    return {
        (one, other)
        for one, other in edges
        if not any(
            other in beyond.get(each, ()) and one not in beyond.get(each, ())
            for each in after[one] - {other}
        )
    }


def _ways(layers: dict[Group, int], edges: Edges) -> list[list[Group]]:
    """Let each edge pass the layers between its ends: there it gets a place of its own."""
    ways = []
    for number, (one, other) in enumerate(sorted(edges)):
        between = range(layers[one] + 1, layers[other])
        ways.append([one, *(("", layer, str(number)) for layer in between), other])
    return ways


def _columns(layers: dict[Group, int], ways: list[list[Group]]) -> dict[Group, float]:
    """Return the place of each group and bend in its layer, centred on 0."""
    rows: dict[int, list[Group]] = {}
    for group, layer in layers.items():
        rows.setdefault(layer, []).append(group)
    near: dict[Group, list[Group]] = {group: [] for group in layers}
    for one, other in (step for way in ways for step in itertools.pairwise(way)):
        near[one].append(other)
        near[other].append(one)
    columns: dict[Group, float] = {}
    for row in rows.values():
        columns |= _spread(row)
    for _ in range(_SWEEPS):
        for number in sorted(rows):
            row = rows[number]
            row.sort(
                key=lambda group: sum(columns[n] for n in near[group]) / len(near[group] or [0])
            )
            columns |= _spread(row)
    return columns


def _spread(row: list[Group]) -> dict[Group, float]:
    """Place a layer's groups side by side; a bend needs little room."""
    widths = [1.0 if group[0] else _BEND for group in row]
    ends = list(itertools.accumulate(widths))
    return {
        group: end - (width + ends[-1]) / 2
        for group, end, width in zip(row, ends, widths, strict=True)
    }


def mermaid(graph: dict[str, Any]) -> str:
    """Write a graph in Mermaid's language."""
    lines = ["graph TD"]
    for node in graph["nodes"]:
        which = f", round {node['round']}" if node["round"] else ""
        many = f" ({node['artifacts']})" if node["artifacts"] > 1 else ""
        title = re.sub(r"[^\w .,+-]", " ", node["title"])  # nothing that Mermaid could read
        lines.append(f'  {node["id"]}["{title}{which}{many}"]')
    lines += [f"  {one} --> {other}" for one, other in graph["edges"]]
    return "\n".join(lines)
