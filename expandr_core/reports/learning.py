"""What was learned from: rewards, pairs and lengths of each round, and the curves of the trainings."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from expandr_core.data.terms import count_words
from expandr_core.evaluation.comparison import titles_of
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.nodes import ADAPTERS, Node
from expandr_core.reports.histograms import histograms
from expandr_core.store.artifacts import Artifact
from expandr_core.store.run_records import Step

Row = dict[str, Any]
LOW_AGREEMENT = 0.3  # of the components of the reward, by Kendall's tau
POINTS = 150  # of a curve; longer ones are averaged piecewise
_ROWS_AT_ONCE = 4096
_KINDS = {"train_retriever": "retriever", "distil": "student"}
MEASURES = {
    "loss": "loss",
    "eval_loss": "loss on the dev rows",
    "rewards/margins": "margin of the implicit rewards",
    "rewards/accuracies": "share of pairs ranked rightly",
    "kl": "divergence from the start (nats per text)",
    "dev_ndcg_at_10": "nDCG@10 on the dev examples",
}


def _steps(run: ComparedRun, *stages: str) -> Iterator[Step]:
    """Yield the steps of some stages, each artifact once."""
    seen = set()
    for step in run.run.steps:
        if step.id.stage in stages and step.artifact.key not in seen:
            seen.add(step.artifact.key)
            yield step


def label_of(title: str, number: int) -> str:
    """Say to which round a step belongs, and if the run has parts to which.

    >>> label_of("choose pairs, round 1", 1), label_of("seed 2, base: choose pairs, round 1", 1)
    ('round 1', 'seed 2, base, round 1')
    """
    part = title.rpartition(": ")[0]
    return f"{part}, round {number}" if part else f"round {number}"


def distributions_of(run: ComparedRun) -> Row:
    """Return histograms by round: rewards, margins, lengths of the pairs and of what was written."""
    rewards, margins, words = {}, {}, {}
    for step in _steps(run, "reward"):
        parts = run.lineage.node(step.artifact.key).manifest["parts"]
        columns = [_column(run, Artifact(**part), "rewards.parquet", "reward") for part in parts]
        rewards[label_of(step.title, step.id.round)] = np.concatenate(columns)
    for step in _steps(run, "pairs", "import_pairs"):
        own = label_of(step.title, step.id.round)
        path = run.store.local(step.artifact) / "pairs.parquet"
        margin = pq.read_table(path, columns=["margin"])["margin"].drop_null()
        margins[own] = margin.to_numpy().astype(np.float64)
        for side in ("chosen", "rejected"):
            batches = pq.ParquetFile(path).iter_batches(_ROWS_AT_ONCE, columns=[f"{side}_text"])
            lengths = [count_words(text) for each in batches for text in each.column(0).to_pylist()]
            words[f"{side}, {own}"] = np.array(lengths)
    return {
        "rewards": histograms(rewards),
        "margins": histograms(margins),
        "pair_words": histograms(words),
        "tokens": histograms(_written(run)),
    }


def _written(run: ComparedRun) -> dict[str, Any]:
    """Return the lengths in tokens of the sampled expansions of the first dataset, by who wrote them."""
    titles = titles_of(run.comparison)
    dataset = run.comparison["datasets"][0]["name"]
    found: dict[str, str] = {}
    for name in titles:
        key = next(run.measured.evaluations(dataset, name))[2]
        expansions = run.lineage.node(key).inputs.get("expansions")
        if expansions and not name.endswith("-greedy"):
            found.setdefault(expansions["key"], name)
    lengths = {}
    for key in found:
        node = run.lineage.node(key)
        number = next((s.id.round for s in run.run.steps if s.artifact.key == key), 0)
        who = f"round {number}" if number else "start"
        lengths[who if who not in lengths else f"{who}, {titles[found[key]]}"] = np.concatenate(
            [
                _column(run, Artifact(**part), "expansions.parquet", "tokens")
                for part in node.manifest["parts"]
            ]
        )
    return lengths


def _column(run: ComparedRun, shard: Artifact, name: str, column: str) -> Any:
    path = run.store.local(shard) / name
    values = pq.read_table(path, columns=[column])[column].to_numpy().astype(np.float64)
    run.store.release(shard)
    return values


def curves_of(run: ComparedRun) -> list[Row]:
    """Return the log of each training: title, kind, what of and how many, steps, points by measure."""
    found = []
    for step in _steps(run, *ADAPTERS, "train_retriever", "distil"):
        node = run.lineage.node(step.artifact.key)
        entries = list(_log(run, node))
        curves = {
            name: _thinned([(e["step"], e[name]) for e in entries if e.get(name) is not None])
            for name in MEASURES
        }
        curves = {name: points for name, points in curves.items() if len(points) > 1}
        if curves:
            kind, counts = _KINDS.get(node.stage, "LLM"), node.manifest["counts"]
            pairs = counts.get("train_pairs")
            found.append(
                {
                    "key": node.key,
                    "title": step.title,
                    "kind": kind,
                    "round": step.id.round,
                    "examples": counts.get("examples", counts.get("queries"))
                    if pairs is None
                    else pairs,
                    "examples_are": "examples" if pairs is None else "pairs",
                    "steps": max(entry["step"] for entry in entries),
                    "measures": curves,
                }
            )
    return found


def _log(run: ComparedRun, node: Node) -> Iterator[Row]:
    """Read the log of a training; none of an imported adapter."""
    names = {file["path"] for file in node.files()}
    for name in names & {"training_log.json", "training_log.parquet"}:
        path = run.store.local(Artifact(key=node.key, digest="", path=name))
        if name.endswith(".json"):
            yield from json.loads(path.read_text(encoding="utf-8"))
        else:
            yield from pq.read_table(path).to_pylist()


def _thinned(points: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """Average neighbours until there are at most POINTS."""
    if len(points) <= POINTS:
        return [(float(step), float(value)) for step, value in points]
    pieces = np.array_split(np.array(points, np.float64), POINTS)
    return [(float(step), float(value)) for step, value in (piece.mean(axis=0) for piece in pieces)]


def reward_scale(options: Row) -> str:
    """Say what a reward is, and between which numbers.

    >>> reward_scale({"reward": "ndcg_delta", "retriever_weight": 2.0, "self_weight": 1.0})
    'A reward is ndcg_delta of the retriever and 1/rank by the answer, weighted 2 and 1: at most 3.'
    """
    weights = [float(options.get(f"{name}_weight", 1)) for name in ("retriever", "self")]
    named = "1/rank among the candidates by the retriever"
    if options.get("reward", "candidate_rank") != "candidate_rank":
        named = f"{options['reward']} of the retriever"
    return (
        f"A reward is {named} and 1/rank by the answer, weighted {weights[0]:g} and "
        f"{weights[1]:g}: at most {sum(weights):g}."
    )


def audits_of(run: ComparedRun) -> list[Row]:
    """Return the audit of the pairs of each round."""
    found = []
    for step in _steps(run, "audit_pairs"):
        path = run.store.local(step.artifact) / "pair_audit.json"
        facts = json.loads(path.read_text(encoding="utf-8"))
        shares = {
            f"{name}_percent": 100 * facts[name] / facts["pairs"]
            for name in ("chosen_longer", "rejected_longer", "chosen_cut", "rejected_cut")
        }
        shares |= {
            f"{side}_overlap_percent": 100 * facts[f"{side}_overlap"]
            for side in ("chosen", "rejected")
        }
        shares["accepted_percent"] = 100 * facts["accepted"] / facts["queries"]
        own = {"round": step.id.round, "label": label_of(step.title, step.id.round)}
        found.append({**own, **facts, **shares})
    return found
