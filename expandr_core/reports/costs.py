"""What a run cost, by stage, and for each point of nDCG."""

from typing import Any

from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.nodes import Node, total
from expandr_core.store.manifests import DamagedArtifact, flow_run_of

Row = dict[str, Any]
NAMES = {
    "demo_world": "make the demo world",
    "prepare": "prepare the data",
    "tiny_llm": "build the tiny LLM",
    "tiny_retriever": "build the tiny retriever",
    "bm25_index": "index for BM25",
    "expand": "write texts",
    "reward": "reward candidates",
    "pairs": "choose pairs",
    "audit_pairs": "audit pairs",
    "audit": "audit leakage",
    "dpo": "align by DPO",
    "kto": "align by KTO",
    "sft": "align by SFT",
    "merge": "merge adapters",
    "encode": "encode corpora",
    "mine": "mine hard negatives",
    "train_retriever": "train retrievers",
    "evaluate": "measure dense search",
    "evaluate_bm25": "measure BM25",
    "evaluate_runs": "measure gated search",
    "gate": "learn the gate",
    "distil": "distil the query encoder",
    "compare": "compare",
}


def name_of(stage: str) -> str:
    """Name a stage for people.

    >>> name_of("reward"), name_of("import_model")
    ('reward candidates', 'import model')
    """
    return NAMES.get(stage, stage.replace("_", " "))


def costs_of(run: ComparedRun, points: float | None) -> Row:
    """Return a row for each stage, their sums, and what each point of nDCG cost.

    Args:
        run: whose steps are counted, each artifact once.
        points: of nDCG that were gained, in hundredths; None if not known, or of several datasets.
    """
    by_stage: dict[str, list[Node]] = {}
    gone = []
    for key in dict.fromkeys(step.artifact.key for step in run.run.steps):
        try:
            node = run.lineage.node(key)
        except DamagedArtifact:
            gone.append(key)
            continue
        by_stage.setdefault(node.stage, []).append(node)
    whole = _row(run, [node for found in by_stage.values() for node in found])
    gained = points if points and points > 0 else None
    return {
        "stages": [
            {"stage": stage, "title": name_of(stage)} | _row(run, found)
            for stage, found in by_stage.items()
        ],
        "total": whole,
        "gone": gone,
        "points": points,
        "seconds_per_point": gained and whole["seconds"] / gained,
        "gpu_hours_per_point": gained and whole["gpu_hours"] and whole["gpu_hours"] / gained,
    }


def _row(run: ComparedRun, nodes: list[Node]) -> Row:
    made = [node for node in nodes if flow_run_of(dict(node.manifest)) == run.run.flow_run_id]
    cost, own = total(nodes), total(made)
    return {
        "artifacts": len(nodes),
        "made": len(made),
        "reused": len(nodes) - len(made),
        "seconds": cost.seconds,
        "seconds_made": own.seconds,
        "seconds_reused": cost.seconds - own.seconds,
        "gpu_hours": cost.gpu_hours,
        "tokens": int(cost.tokens or 0) or None,
        "megabytes": cost.bytes / 1e6,
        "peak_gigabytes": None if cost.peak_memory is None else cost.peak_memory / 1e9,
    }
