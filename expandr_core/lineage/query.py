"""One query of a run: what was written for it, what that was worth, and what each system found."""

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import MeasuredDataset, read_comparison, titles_of
from expandr_core.lineage.nodes import Lineage, Node
from expandr_core.records import rows_with_ids
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import RecordedRun
from expandr_core.store.store import Store

_LISTED = 10


def explain_query(
    store: Store, run: RecordedRun, query_id: str, dataset: str = "", top: int = 3
) -> dict[str, Any]:
    """Show one query of a run.

    Args:
        store: that keeps the run.
        run: of any flow.
        query_id: of a measured query, or of one that candidates were written and rewarded for.
        dataset: or DATASET/SUBSET, if several have this id; "" for the first.
        top: how many passages to show of each system.

    Returns:
        `query`, `systems` (texts in the order of the report, so before and after an alignment; nDCG@10;
        top passages; the ranks and scores of the judged ones), and `rewarded`: the candidates of each
        round with their rewards and ranks, and which became a pair. `unrewarded` says why there are
        none.

    Raises:
        DataError: if the run knows no such query; it lists some.
    """
    lineage, comparison = Lineage(store, run), read_comparison(store.local(run.report))
    inputs = lineage.node(run.report.key).inputs
    rewarded = [
        found
        for step in run.steps
        if step.id.stage == "reward"
        for found in _candidates(lineage, run, step.artifact.key, step.id.round, query_id)
    ]
    place, text = _find(store, comparison, inputs, query_id, dataset)
    if not place and not rewarded:
        first = next(iter(_places(comparison)))
        ids = pq.ParquetFile(store.local(Artifact(**inputs[f"queries/{first}"])))
        some = next(ids.iter_batches(_LISTED, columns=["query_id"]))["query_id"].to_pylist()
        listed = ", ".join(map(repr, some))
        raise DataError(f"{run.name} has no query {query_id!r}; on {first} there are {listed} ...")
    found: dict[str, Any] = {"run": run.name, "query_id": query_id, "query": text, "dataset": place}
    if place:
        found |= _measured(lineage, comparison, inputs, place, query_id, top)
    else:
        found["query"] = rewarded[0]["query"]
    return found | {"rewarded": rewarded, "unrewarded": "" if rewarded else _unrewarded(run)}


def _unrewarded(run: RecordedRun) -> str:
    """Say why a query has no rewarded candidates, and what tells how close its texts come instead."""
    if not any(step.id.stage == "reward" for step in run.steps):
        return "this run rewards no candidates"
    return (
        "candidates are rewarded for the preference queries only, and this is none of them; how close a "
        "text comes to a judged passage is the score of the systems that search with the text alone"
    )


def _places(comparison: Mapping[str, Any]) -> list[str]:
    """Return what inputs of the comparison call its datasets, or their subsets."""
    every = (MeasuredDataset(**each).keys().values() for each in comparison["datasets"])
    return [place for places in every for place in places]


def _find(
    store: Store,
    comparison: Mapping[str, Any],
    inputs: Mapping[str, Any],
    query_id: str,
    dataset: str,
) -> tuple[str, str]:
    """Return where a query is measured, and its text; both are empty if nowhere."""
    for place in _places(comparison):
        if dataset in ("", place, place.partition("/")[0]):
            path = store.local(Artifact(**inputs[f"queries/{place}"]))
            rows = rows_with_ids(path, "query_id", [query_id], ["query_id", "query"])
            if len(rows):
                return place, rows["query"][0].as_py()
    return "", ""


def _measured(
    lineage: Lineage,
    comparison: Mapping[str, Any],
    inputs: Mapping[str, Any],
    place: str,
    query_id: str,
    top: int,
) -> dict[str, Any]:
    """Show what each system found, the first seed of each."""
    store, titles = lineage.store, titles_of(dict(comparison))
    systems, wanted, corpus = [], dict[str, None](), None
    relevance: dict[str, int] = {}
    for system, title in titles.items():
        node = lineage.node(inputs[f"measured/{place}/{system}/0"]["key"])
        if corpus is None:
            judged = _rows(store, node.inputs["qrels"], query_id)
            relevance = {row["passage_id"]: row["relevance"] for row in judged}
            corpus = Artifact(**lineage.corpus_of(node.key))
        hits = pq.read_table(
            store.local(_file(node, "run.parquet")), filters=[("query_id", "=", query_id)]
        ).sort_by("rank")
        scores = _rows(store, _file(node, "per_query.parquet").model_dump(), query_id)
        shown = hits.slice(0, top).to_pylist()
        ranked = hits.filter(pc.field("passage_id").isin(list(relevance))).to_pylist()
        found = {each["passage_id"]: each for each in ranked}
        wanted |= dict.fromkeys([*(each["passage_id"] for each in shown), *relevance])
        systems.append({
            "system": system, "title": title, "evaluation": node.key,
            "metrics": {k: v for k, v in scores[0].items() if isinstance(v, float)} if scores else {},
            "expansions": _texts(lineage, node, query_id),
            "top": [{name: each[name] for name in ("rank", "passage_id", "score")} for each in shown],
            "judged": [
                {"passage_id": name, "relevance": grade}
                | {fact: found[name][fact] if name in found else None for fact in ("rank", "score")}
                for name, grade in relevance.items()
            ],
        })  # fmt: skip
    assert corpus is not None
    return {"passages": _passages(store, corpus, list(wanted)), "systems": systems}


def _file(node: Node, path: str) -> Artifact:
    [digest] = [file["sha256"] for file in node.files() if file["path"] == path]
    return Artifact(key=node.key, digest=digest, path=path)


def _rows(store: Store, reference: Mapping[str, Any], query_id: str) -> list[dict[str, Any]]:
    """Return the rows of a query in a file."""
    path = store.local(Artifact(**reference))
    return rows_with_ids(path, "query_id", [query_id]).to_pylist()


def _passages(store: Store, corpus: Artifact, ids: list[str]) -> dict[str, str]:
    """Return passages by id: title and text."""
    rows = rows_with_ids(store.local(corpus), "passage_id", ids).to_pylist()
    return {row["passage_id"]: f"{row['title']} {row['text']}".strip() for row in rows}


def _texts(lineage: Lineage, node: Node, query_id: str) -> dict[str, Any] | None:
    """Return what was written for a query; None if it is searched alone."""
    if "expanded" in node.inputs:  # of two searches, the one that may be taken
        return _texts(lineage, lineage.node(node.inputs["expanded"]["key"]), query_id)
    reference = node.inputs.get("expansions")
    if reference is None:
        return None
    written = lineage.node(reference["key"])
    rows = _in_shards(lineage.store, written, "expansions.parquet", query_id)
    return {"from": written.key, "title": written.title, "texts": [row["text"] for row in rows]}


def _in_shards(store: Store, node: Node, name: str, query_id: str) -> list[dict[str, Any]]:
    """Return a query's rows in the shards of an artifact, by sample."""
    rows: list[dict[str, Any]] = []
    for part in node.manifest["parts"]:
        artifact = Artifact(**part)
        path = store.local(artifact) / name
        rows += pq.read_table(path, filters=[("query_id", "=", query_id)]).to_pylist()
        store.release(artifact)
        if rows:
            break
    return sorted(rows, key=lambda row: row["sample"])


def _candidates(
    lineage: Lineage, run: RecordedRun, key: str, round: int, query_id: str
) -> list[dict[str, Any]]:
    """Return a round's candidates of a query, the best first; none if the round has none."""
    rows = _in_shards(lineage.store, lineage.node(key), "rewards.parquet", query_id)
    if not rows:
        return []
    pair: dict[str, Any] = {}
    for step in run.steps:
        if step.id.stage == "pairs" and step.id.round == round:
            node = lineage.node(step.artifact.key)
            if node.inputs.get("rewards", {}).get("key") == key:
                chosen = _rows(lineage.store, _file(node, "pairs.parquet").model_dump(), query_id)
                pair = chosen[0] if chosen else {}
    sides = {pair.get(f"{side}_sample"): side for side in ("chosen", "rejected")}
    rows.sort(key=lambda row: -row["reward"])
    candidates = [
        {"rank": rank, "side": sides.get(row["sample"], "")}
        | {name: row.get(name) for name in row if name not in ("query_id", "query", "tie", "apart")}
        for rank, row in enumerate(rows, 1)
    ]
    return [{"round": round, "rewards": key, "query": rows[0]["query"], "candidates": candidates}]
