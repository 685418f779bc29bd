"""Which models a run began with: who wrote the texts, and who searched."""

from typing import Any

import pyarrow.parquet as pq

from expandr_core.evaluation.comparison import titles_of
from expandr_core.evaluation.metrics import HEADLINE
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.nodes import Node
from expandr_core.store.artifacts import Artifact
from expandr_core.store.manifests import DamagedArtifact

Row = dict[str, Any]
_STARTS = ("tiny_llm", "tiny_retriever", "import_model")
_MILLION = 1e6


def models_of(run: ComparedRun) -> list[Row]:
    """Return the models upstream of the report that nothing in the run was trained before.

    Each has a `role` (llm, retriever, reward encoder), a `name`, what is known `about` it, and whether
    it was `built` from the collection's own texts rather than imported.
    """
    roles: dict[str, str] = {}
    found, keys = [], [run.run.report.key]
    nodes: dict[str, Node | None] = {}
    for key in keys:
        nodes[key] = node = _node(run, key)
        for role, reference in node.inputs.items() if node else ():
            if role in ("llm", "retriever") and node and node.stage != "reward":
                roles[reference["key"]] = role
            if reference["key"] not in keys:
                keys.append(reference["key"])
    for key, node in nodes.items():
        if key.rpartition("-")[0] in _STARTS:
            found.append(
                {"role": roles.get(key, "reward encoder"), "key": key, **_described(key, node)}
            )
    endpoint = run.run.options.get("llm", {})
    if endpoint.get("engine") == "endpoint":
        model = endpoint.get("endpoint", {}).get("model") or "the model of an endpoint"
        found.append({"role": "llm", "key": "", "name": model, "about": "", "built": False})
    return found


def _node(run: ComparedRun, key: str) -> Node | None:
    """Return a node, or None if it is gone."""
    try:
        return run.lineage.node(key)
    except DamagedArtifact:
        return None


def _described(key: str, node: Node | None) -> Row:
    if node is None:
        built = not key.startswith("import_model")
        return {"name": key, "about": "not in the store any more", "built": built}
    options, counts = node.manifest["options"], node.manifest["counts"]
    if node.stage == "import_model":
        folder = str(options.get("folder") or node.manifest.get("runtime", {}).get("folder", ""))
        name = "/".join([part for part in folder.split("/") if part][-2:])
        size = sum(file["size"] for file in node.files()) / _MILLION
        return {"name": name or "a model", "about": f"imported, {size:,.0f} MB", "built": False}
    shape = {"layers": "layers: {}", "hidden_size": "hidden size: {}", "dimensions": "dimensions: {}",
             "steps": "steps: {}"}  # fmt: skip
    about = [text.format(options[name]) for name, text in shape.items() if name in options]
    if counts.get("parameters"):
        about.append(f"parameters: {counts['parameters']:,.0f}")
    kind = "LLM" if node.stage == "tiny_llm" else "retriever"
    return {"name": f"a tiny {kind}", "about": ", ".join(about), "built": True}


def origin_of(model: Row) -> str:
    """Say what a model is.

    >>> origin_of({"name": "a tiny LLM", "about": "layers: 3", "built": True})
    "a tiny LLM that was built from the collection's own texts (layers: 3)"
    >>> origin_of({"name": "Qwen3-0.6B", "about": "imported, 1,200 MB", "built": False})
    'Qwen3-0.6B (imported, 1,200 MB)'
    """
    built = " that was built from the collection's own texts" if model["built"] else ""
    return f"{model['name']}{built}{' (' + model['about'] + ')' if model['about'] else ''}"


def beginnings_of(models: list[Row]) -> list[str]:
    """Say who wrote the texts and who searched, a sentence each."""
    said = []
    for role, what in (
        ("llm", "The texts were written by"),
        ("retriever", "The search began with"),
    ):
        origins = dict.fromkeys(origin_of(each) for each in models if each["role"] == role)
        if origins:
            trained = ", or what was trained from it" if len(origins) == 1 else ""
            said.append(f"{what} {' and '.join(origins)}{trained}.")
    return said


def dev_scores_of(run: ComparedRun) -> list[Row]:
    """Return nDCG@10 on the dev queries that chose the round, by system; none if there was no choice."""
    found: dict[str, Row] = {}
    for choice in run.choices:
        titles = titles_of(choice.comparison)
        for row in choice.comparison["results"]:
            known = {"title": titles[row["system"]], "queries": row["queries"]}
            found[row["system"]] = {**known, "value": row[HEADLINE]}
    return list(found.values())


def expanding(run: ComparedRun, dataset: str) -> dict[str, bool]:
    """Tell by system whether it searches with expansions, if only of some queries."""

    def reads(node: Node) -> bool:
        if "expanded" in node.inputs:
            return reads(run.lineage.node(node.inputs["expanded"]["key"]))
        return "expansions" in node.inputs

    return {
        name: any(reads(run.lineage.node(key)) for key in run.evaluations(dataset, name).values())
        for name in run.measured.seeds
    }


def ranks_nothing_else(run: ComparedRun, dataset: str, name: str, other: str) -> bool:
    """Tell whether two systems find the same passages in the same order."""
    own, others = run.evaluations(dataset, name), run.evaluations(dataset, other)
    if set(own) != set(others):
        return False
    return all(own[place] == others[place] or _hits(run, own[place]) == _hits(run, others[place])
               for place in own)  # fmt: skip


def _hits(run: ComparedRun, key: str) -> Any:
    path = run.store.local(Artifact(key=key, digest="", path="run.parquet"))
    table = pq.read_table(path, columns=["query_id", "rank", "passage_id"])
    return table.sort_by([("query_id", "ascending"), ("rank", "ascending")])
