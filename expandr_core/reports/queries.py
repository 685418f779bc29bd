"""Queries won and lost: all of them as a curve, and those that changed most, with their texts."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq

from expandr_core.evaluation.comparison import MeasuredDataset, dataset_key, titles_of
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.nodes import Node
from expandr_core.records import rows_with_ids
from expandr_core.reports.facts import searched
from expandr_core.reports.models import expanding
from expandr_core.reports.rankings import best_positives, relevant, top_hits
from expandr_core.store.artifacts import Artifact

Row = dict[str, Any]
SHOWN = 10  # queries at each end
PASSAGES = 3  # of each system
EXPANSIONS = 2  # of each LLM
CHARACTERS = 3000  # of a text; the rest is cut
_CURVE = 200  # points


def changes_of(run: ComparedRun, headline: Row) -> Row:
    """Return the changes of all queries between two systems, sorted, and the queries at both ends.

    Args:
        run: of any flow.
        headline: the test of these systems.
    """
    path = run.store.local(run.run.report) / "differences.parquet"
    expands = expanding(run, headline["dataset"])
    pair = {name: headline[name] for name in ("dataset", "before", "after")}
    rows = pq.read_table(
        path,
        columns=["query_id", "before_score", "after_score", "difference"],
        filters=[(name, "=", value) for name, value in pair.items()],
    ).sort_by([("difference", "descending"), ("query_id", "ascending")])
    differences = rows["difference"].to_numpy()
    best = [row for row in rows.slice(0, SHOWN).to_pylist() if row["difference"] > 0]
    worst = rows.slice(max(0, len(rows) - SHOWN)).to_pylist()[::-1]
    worst = [row for row in worst if row["difference"] < 0]
    _add_texts(run, headline, [*best, *worst])
    places = np.unique(np.linspace(0, len(rows) - 1, min(_CURVE, len(rows))).round().astype(int))
    return pair | {
        "before_title": headline["before_title"],
        "after_title": headline["after_title"],
        "writer_before": _writer(run, headline["before"]),
        "before_expands": expands[headline["before"]],
        "after_expands": expands[headline["after"]],
        "seeds": max(run.measured.seeds[headline[side]] for side in ("before", "after")),
        "queries": len(rows),
        "wins": int((differences > 0).sum()),
        "ties": int((differences == 0).sum()),
        "losses": int((differences < 0).sum()),
        "curve": [(int(place) + 1, float(differences[place])) for place in places],
        "best": best,
        "worst": worst,
    }


def _writer(run: ComparedRun, before: str) -> str:
    """Name the system whose expansions are shown before: the first one's, or the untrained LLM's."""
    names, place = titles_of(run.comparison), run.comparison["datasets"][0]["name"]
    key = next(run.measured.evaluations(place, before))[2]
    written = "expansions" in run.lineage.node(key).inputs
    return names[before if written or "untrained" not in names else "untrained"]


def _add_texts(run: ComparedRun, headline: Row, rows: list[Row]) -> None:
    """Add what was asked, written and found to rows, subset by subset."""
    [dataset] = [d for d in run.comparison["datasets"] if d["name"] == headline["dataset"]]
    report = run.lineage.node(run.run.report.key)
    names = {"before": headline["before"], "after": headline["after"]}
    for subset in MeasuredDataset(**dataset).subsets:
        beginning = f"{subset}/" if subset else ""
        own = [row for row in rows if row["query_id"].startswith(beginning)]
        place = dataset_key(headline["dataset"], subset)
        nodes = {
            side: run.lineage.node(report.inputs[f"measured/{place}/{name}/0"]["key"])
            for side, name in names.items()
        }
        for row in own:
            row["id"] = row["query_id"].removeprefix(beginning)
        if own:
            _add_queries(run, nodes["after"], own)
            _add_expansions(run, f"measured/{place}/untrained/0", nodes, own)
            _add_hits(run, nodes, own)


def _add_queries(run: ComparedRun, node: Node, rows: list[Row]) -> None:
    path = run.store.local(Artifact(**node.inputs["queries"]))
    found = rows_with_ids(path, "query_id", [row["id"] for row in rows]).to_pylist()
    known = {each["query_id"]: each for each in found}
    for row in rows:
        row["query"] = cut(known[row["id"]]["query"])
        row["cluster"] = known[row["id"]]["cluster"]


def _add_expansions(
    run: ComparedRun, untrained: str, nodes: dict[str, Node], rows: list[Row]
) -> None:
    """Add what the LLM of the start, if it is another, and that of the second system wrote.

    If the first system has expansions, it is they that are shown before.
    """
    before, report = nodes["before"], run.lineage.node(run.run.report.key)
    if "expansions" not in before.inputs and untrained in report.inputs:
        start = run.lineage.node(report.inputs[untrained]["key"])
        if start.inputs["expansions"] != nodes["after"].inputs.get("expansions"):
            before = start
    for side, node in (("before", before), ("after", nodes["after"])):
        reference = node.inputs.get("expansions")
        written = _written(run, reference["key"], [row["id"] for row in rows]) if reference else {}
        for row in rows:
            texts = written.get(row["id"], [])
            row[f"expansions_{side}"] = [cut(text) for text in texts[:EXPANSIONS]]
            row[f"expansions_{side}_more"] = max(0, len(texts) - EXPANSIONS)


def _written(run: ComparedRun, key: str, ids: list[str]) -> dict[str, list[str]]:
    """Return what was written for some queries, by sample."""
    found: dict[str, list[Row]] = {}
    for part in run.lineage.node(key).manifest["parts"]:
        shard = Artifact(**part)
        path = run.store.local(shard) / "expansions.parquet"
        for row in rows_with_ids(path, "query_id", ids, ["query_id", "sample", "text"]).to_pylist():
            found.setdefault(row["query_id"], []).append(row)
        run.store.release(shard)
    return {
        query_id: [each["text"] for each in sorted(own, key=lambda each: each["sample"])]
        for query_id, own in found.items()
    }


def _add_hits(run: ComparedRun, nodes: dict[str, Node], rows: list[Row]) -> None:
    """Add the first passages of both systems, and at which rank each finds a relevant one."""
    ids = [row["id"] for row in rows]
    positives = relevant(run.store.local(Artifact(**nodes["after"].inputs["qrels"])))
    own = {query_id: positives.get(query_id, set()) for query_id in ids}
    found = {}
    for side, node in nodes.items():
        ranking = run.store.local(Artifact(key=node.key, digest="", path="run.parquet"))
        ranks = best_positives(ranking, own)
        found[side] = top_hits(ranking, ids, PASSAGES)
        for row in rows:
            row[f"rank_{side}"] = ranks[row["id"]][1] if row["id"] in ranks else None
    hits = [hit for side in found.values() for of_query in side.values() for hit in of_query]
    texts = _passages(run, nodes["after"], {hit["passage_id"] for hit in hits})
    for side, of_side in found.items():
        for row in rows:
            row[f"top_{side}"] = [
                {
                    "rank": hit["rank"],
                    "passage_id": hit["passage_id"],
                    "relevant": hit["passage_id"] in own[row["id"]],
                    "text": cut(texts[hit["passage_id"]]),
                }
                for hit in of_side[row["id"]]
            ]


def _passages(run: ComparedRun, node: Node, ids: set[str]) -> dict[str, str]:
    path = run.store.local(Artifact(**searched(run.lineage, node).inputs["corpus"]))
    rows = rows_with_ids(path, "passage_id", sorted(ids)).to_pylist()
    return {row["passage_id"]: f"{row['title']} {row['text']}".strip() for row in rows}


def cut(text: str) -> Row:
    """Cut a text at CHARACTERS, and say how long it was.

    >>> cut("a red bird")
    {'text': 'a red bird', 'characters': 10, 'cut': False}
    """
    return {"text": text[:CHARACTERS], "characters": len(text), "cut": len(text) > CHARACTERS}
