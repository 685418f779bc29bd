"""Explain a number of a report: the files that it was computed from, back to the data."""

import contextlib
from collections.abc import Mapping
from typing import Any

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import MeasuredDataset, titles_of
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.lineage.cells import DEVIATION, Cell, cells, find_cell, spelt
from expandr_core.lineage.compared_run import DEV, ComparedRun
from expandr_core.lineage.intervals import CONFIDENCE_PERCENT
from expandr_core.lineage.nodes import ADAPTERS, Lineage, Node, total
from expandr_core.lineage.options import changed_options, changed_stage_options
from expandr_core.lineage.prompt import example_prompt
from expandr_core.lineage.recompute import Recomputation
from expandr_core.store.run_records import RecordedRun
from expandr_core.store.store import Store

SCHEMA = 1  # of what `expandr explain --json` prints
AGREES = 1e-9
_ABOUT = {
    DEVIATION: ", standard deviation over seeds",
    "low": f", lower limit of the {CONFIDENCE_PERCENT} % interval",
    "high": f", upper limit of the {CONFIDENCE_PERCENT} % interval",
}


def explain(store: Store, run: RecordedRun, what: str = "", check: bool = False) -> dict[str, Any]:
    """Explain a number of a run's report.

    Args:
        store: that keeps the run.
        run: of any flow.
        what: the cell, such as "joint-1/ndcg@10"; "" for the headline.
        check: compute the number again from the rankings and the judgements.

    Returns:
        Plain values, as `expandr explain --json` prints them.

    Raises:
        DataError: if there is no such cell; it lists those that there are.
    """
    report = ComparedRun(store, run)
    compared = _measuring(report, what)
    comparison, lineage, again = compared.comparison, compared.lineage, compared.measured
    cell = find_cell(comparison, what, compared.limits)
    systems = [name for name in (cell.before, cell.system) if name]
    measured: list[dict[str, Any]] = [
        {"system": system, "dataset": dataset, "subset": subset, "seed": seed}
        | _evaluation(lineage, key, cell)
        for system in systems
        for dataset in _datasets(comparison, cell)
        for subset, seed, key in again.evaluations(dataset, system)
    ]
    nodes = lineage.upstream(each["key"] for each in measured)
    chain = _models(lineage, measured[-1]["key"])
    found = {
        "schema": SCHEMA,
        "run": run.name,
        "what": cell.name,
        "title": title_of(comparison, cell),
        "value": cell.value,
        "kept": (report.comparison["kept"] or {}).get("reason", ""),
        "report": f"{compared.run.report.key}/comparison.json",
        "store": store.url,
        "evaluations": measured,
        "models": {role: _reference(node) for role, node in chain.items()},
        "prompt": example_prompt(store, chain.get("expansions")),
        "seeds": _by_value(nodes, "seed"),
        "sources": _sources(nodes),
        "options": changed_options(run),
        "commits": _by_value(nodes, "commit"),
        "libraries": _libraries(nodes, "libraries"),
        "vllm_libraries": _libraries(nodes, "vllm_libraries"),
        "cost": total(nodes).plain(),
        "nodes": [_node(node) for node in nodes],
    }
    if cell.kind == "audit":
        audit = lineage.node(again.audit(cell).key)
        found["audit"] = f"{audit.key}/audit.parquet"
    if check:
        found["check"] = _check(again, cell)
    return found


def check_all(store: Store, run: RecordedRun) -> list[dict[str, Any]]:
    """Compute every number of a run's report again from the rankings and the judgements.

    Returns:
        In the order of the report: `what`, as `explain` takes it; `value`; and `check` as there.
    """
    report = ComparedRun(store, run)
    known = {
        cell.name: {"what": cell.name, "value": cell.value, "check": _check(each.measured, cell)}
        for each in (*report.choices, report)
        for cell in cells(each.comparison, each.limits)
        if cell.value is not None
    }
    return list(known.values())


def _measuring(report: ComparedRun, what: str) -> ComparedRun:
    """Return what has measured a cell: the report or, on dev, the first choice of a round that did."""
    if not what.startswith(f"{DEV}/") or DEV in report.measured.datasets:
        return report
    for each in report.choices:
        with contextlib.suppress(DataError):
            find_cell(each.comparison, what, each.limits)
            return each
    return report.choices[-1] if report.choices else report


def _datasets(comparison: Mapping[str, Any], cell: Cell) -> list[str]:
    """Return the datasets that a cell is measured on; an audit is of one subset of a dataset."""
    if cell.kind == "audit":
        known = (MeasuredDataset(**each) for each in comparison["datasets"])
        return [each.name for each in known if cell.place in each.keys().values()]
    return list(cell.row["datasets"]) if cell.kind == "mean" else [cell.place]


def _check(again: Recomputation, cell: Cell) -> dict[str, Any]:
    assert cell.value is not None
    value = again.value(cell)
    difference = abs(value - cell.value)
    return {"value": value, "difference": difference, "agrees": difference <= AGREES}


def title_of(comparison: Mapping[str, Any], cell: Cell) -> str:
    """Name a cell as the report does."""
    titles, said = titles_of(dict(comparison)), ""
    metric, _, about = cell.field.rpartition("_")
    if about in _ABOUT:
        said = _ABOUT[about]
    else:
        metric = cell.field
    number = (MEASURES[metric].title if metric in MEASURES else spelt(metric)) + said
    where = cell.row["title"] if cell.kind == "mean" else cell.place
    system = titles[cell.system]
    if cell.before:
        metric = MEASURES[comparison["metric"]].title
        return f"{titles[cell.before]} → {system}: {number} ({metric}) on {where}"
    return f"{system}: {number} on {where}"


def _evaluation(lineage: Lineage, key: str, cell: Cell) -> dict[str, Any]:
    """Say where an evaluation's numbers lie, and what was searched for and judged."""
    node = lineage.node(key)
    counts = node.manifest["counts"]
    files = {file["path"]: file["sha256"] for file in node.files()}
    return {
        "key": key,
        "value": counts.get(cell.field),
        "queries": counts["queries"],
        "run_file": {"path": f"{key}/run.parquet", "sha256": files["run.parquet"]},
        "per_query": {"path": f"{key}/per_query.parquet", "sha256": files["per_query.parquet"]},
        "query_texts": _referred(node.inputs["queries"]),
        "judgements": _referred(node.inputs["qrels"]),
        "corpus": _referred(lineage.corpus_of(key)),
    }


def _referred(reference: Mapping[str, Any]) -> dict[str, str]:
    """Refer to an input by path and digest."""
    path = f"{reference['key']}/{reference['path']}" if reference.get("path") else reference["key"]
    return {"path": path, "digest": reference["digest"]}


def _models(lineage: Lineage, evaluation: str) -> dict[str, Node]:
    """Find the models behind an evaluation, and what they were trained on, by role."""
    node = lineage.node(evaluation)
    if "expanded" in node.inputs:
        return _models(lineage, node.inputs["expanded"]["key"])
    found: dict[str, Node] = {}
    if "retriever" in node.inputs:
        found["retriever"] = lineage.node(node.inputs["retriever"]["key"])
    if "expansions" not in node.inputs:
        return found
    expansions = lineage.node(node.inputs["expansions"]["key"])
    found["expansions"] = expansions
    if "llm" not in expansions.inputs:
        return found
    found["llm"] = lineage.node(expansions.inputs["llm"]["key"])
    adapter = lineage.first(expansions.key, ADAPTERS, ("adapter", "llm"))
    if adapter:
        found["adapter"] = adapter
        for role, above in (("pairs", "adapter"), ("rewards", "pairs"), ("candidates", "rewards")):
            if above in found and role in found[above].inputs:
                found[role] = lineage.node(found[above].inputs[role]["key"])
    return found


def _reference(node: Node) -> dict[str, Any]:
    """Refer to an artifact for people."""
    return {
        "key": node.key,
        "digest": node.manifest["digest"],
        "title": node.title,
        "counts": node.manifest["counts"],
    }


def _node(node: Node) -> dict[str, Any]:
    """Say how one artifact came to be."""
    manifest = node.manifest
    return {
        "key": node.key,
        "stage": node.stage,
        "title": node.title,
        "digest": manifest["digest"],
        "version": manifest.get("version"),
        "seed": manifest.get("seed"),
        "options": changed_stage_options(node.stage, manifest.get("options", {})),
        "inputs": {
            role: f"{each['key']}/{each['path']}".rstrip("/") for role, each in node.inputs.items()
        },
        "created": manifest.get("created"),
        "commit": manifest.get("commit"),
        "hardware": manifest.get("hardware"),
        "gpus": manifest.get("gpus"),
        **node.cost.plain(),
    }


def _sources(nodes: list[Node]) -> list[dict[str, str]]:
    """List the raw files: those read from outside, and those of artifacts made from nothing else."""
    found = []
    for node in nodes:
        sources = node.manifest.get("sources", {})
        if not node.inputs and not sources:
            sources = {file["path"]: file["sha256"] for file in node.files()}
        found += [
            {"file": name, "sha256": digest, "read_by": node.key}
            for name, digest in sources.items()
        ]
    return found


def _by_value(nodes: list[Node], fact: str) -> dict[str, list[str]]:
    """Group stages by a fact of their manifests."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        stages = found.setdefault(str(node.manifest.get(fact, "")), [])
        if node.stage not in stages:
            stages.append(node.stage)
    return found


def _libraries(nodes: list[Node], interpreter: str) -> dict[str, list[str]]:
    """Return the versions of each library in all manifests; mostly one."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        for name, version in node.manifest.get(interpreter, {}).items():
            if version not in found.setdefault(name, []):
                found[name].append(version)
    return found
