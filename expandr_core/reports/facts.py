"""What a run was: its data, models, code and machines."""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq

from expandr_core.evaluation.comparison import MeasuredDataset
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.nodes import Lineage, Node
from expandr_core.lineage.options import changed_options, flat
from expandr_core.store.artifacts import Artifact

Facts = dict[str, Any]


def run_facts(run: ComparedRun) -> Facts:
    """Return name, flow, times, seed and what was said of the run."""
    record = run.run
    seconds = (record.finished - record.started).total_seconds()
    return {
        "name": record.name,
        "flow": record.kind or "joint-loop",
        "data": _named(run),
        "preset": record.preset,
        "tags": sorted(each for each in record.tags if "=" not in each),
        "set": sorted(each for each in record.tags if "=" in each),
        "started": record.started.isoformat(timespec="seconds"),
        "finished": record.finished.isoformat(timespec="seconds"),
        "seconds": seconds,
        "minutes": seconds / 60,
        "flow_run": record.flow_run_id,
        "store": run.store.url,
        "seed": record.options.get("seed"),
        "best_round": record.best_round,
        "models": {role: each.key for role, each in record.models.items()},
        "report": f"{record.report.key}/comparison.json",
    }


def _named(run: ComparedRun) -> str:
    """Name what the run worked on, for people."""
    options = run.run.options.get("data", {})
    named = str(options.get("collection") or options.get("triples") or "").rstrip("/")
    datasets = ", ".join(each["name"] for each in run.comparison["datasets"])
    if run.run.kind == "evaluate-suite":
        return datasets
    return named.rpartition("/")[2] or "the demo world"


def data_facts(run: ComparedRun) -> list[Facts]:
    """Return a row for each measured dataset or subset: counts and digests of what was measured on."""
    report, found = run.lineage.node(run.run.report.key), []
    first = run.comparison["systems"][0]["name"]
    for dataset in run.comparison["datasets"]:
        for place in MeasuredDataset(**dataset).keys().values():
            node = run.lineage.node(report.inputs[f"measured/{place}/{first}/0"]["key"])
            source = searched(run.lineage, node)
            digests = {
                role: read.inputs[role]["digest"]
                for role, read in (("queries", node), ("qrels", node), ("corpus", source))
            }
            qrels = run.store.local(Artifact(**node.inputs["qrels"]))
            found.append(
                {
                    "dataset": place,
                    "queries": int(node.manifest["counts"]["queries"]),
                    "judgements": pq.read_metadata(qrels).num_rows,
                    "passages": source.manifest["counts"].get("passages"),
                    "digests": digests,
                }
            )
    return found


_PARTS = {
    "preference/queries/train": "preference data",
    "retriever/queries/train": "training the retriever",
    "dev/queries": "choosing the round (dev)",
}


def split_facts(run: ComparedRun) -> list[Facts]:
    """Return how many queries the run learned from, and for what; the same splits of data once."""
    found = []
    for node in run.lineage.upstream([run.run.report.key]):
        counts = node.manifest["counts"] if node.stage == "prepare" else {}
        found += [
            {"part": part, "queries": int(counts[name])}
            for name, part in _PARTS.items()
            if counts.get(name)
        ]
    return list({(each["part"], each["queries"]): each for each in found}.values())


def written_facts(run: ComparedRun) -> Facts:
    """Count the expansions that were trained or searched with, and those cut at the limit of tokens."""
    nodes = run.lineage.upstream([run.run.report.key])
    used = {
        node.inputs[role]["key"] for node in nodes for role in node.inputs if role == "expansions"
    }
    counts = [
        node.manifest["counts"] for node in nodes if node.key in used and node.stage == "expand"
    ]
    return {name: int(sum(each.get(name, 0) for each in counts)) for name in ("texts", "truncated")}


def searched(lineage: Lineage, node: Node) -> Node:
    """Return the node that read the corpus: the encoding or index of it, or the search itself."""
    before = (node.inputs.get(role) for role in ("embeddings", "index", "alone"))
    found = next((each for each in before if each), None)
    return searched(lineage, lineage.node(found["key"])) if found else node


def code_facts(nodes: Iterable[Node]) -> Facts:
    """Return commits, libraries, processors and GPUs of everything upstream; mostly one of each."""
    manifests = [node.manifest for node in nodes]
    libraries: dict[str, list[str]] = {}
    for name, version in (
        pair for each in manifests for pair in sorted(each.get("libraries", {}).items())
    ):
        if version not in libraries.setdefault(name, []):
            libraries[name].append(version)
    return {
        "commits": _values(each.get("commit") for each in manifests),
        "python": _values(each.get("python") for each in manifests),
        "libraries": libraries,
        "hardware": _values(each.get("hardware") for each in manifests),
        "gpus": _values(name for each in manifests for name in each.get("gpus") or []),
        "sources": {
            name: digest for each in manifests for name, digest in each.get("sources", {}).items()
        },
    }


def _values(found: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(each for each in found if each))


def option_facts(run: ComparedRun) -> Facts:
    """Return the options that differ from the defaults, and all, by path, each as JSON text."""
    return {
        name: {path: json.dumps(value, ensure_ascii=False) for path, value in options.items()}
        for name, options in (
            ("changed", changed_options(run.run)),
            ("all", flat(run.run.options)),
        )
    }
