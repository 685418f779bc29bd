"""The stage compare gives the numbers of the two stages that it replaced, to the digit."""

import json
from pathlib import Path
from typing import Any

import pytest
from evaluation_world import make, put, table

from expandr_core.evaluation.comparison import Contrast, MeasuredDataset, System
from expandr_core.evaluation.metrics import METRICS
from expandr_core.stages.compare import CompareOptions
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

GOLDENS = Path(__file__).parent / "goldens"
PART = {"queries": 1, "share": 0.25, "gain_of_these": 0.1, "gain_without": 0.2}
AUDIT = {
    "rule": "copying: many words",
    "queries": 4,
    "gain": 0.15,
    "expansions": {"number": 8, "with_a_run": 2, "copying": 1},
    "query_in_training": PART,
    "passage_in_training": None,
    "copying": PART,
    "any": PART | {"gain_without": None},
}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(str(tmp_path / "store"))


def score(system: int, place: int, seed: int, query: int, metric: int) -> float:
    """A number between 0 and 1 that is hard to guess, and higher for later systems."""
    number = 7919 * (query + 3) ** 2 + 104729 * (system + 1) * (seed + 2)
    number += 1299709 * (place + 1) * (metric + 5)
    return min(1.0, number * number % 9973 / 9972 * 0.7 + 0.07 * system)


def evaluation(store: Store, system: int, place: int, seed: int, queries: int) -> Artifact:
    """An evaluation; in place 0 two queries make a cluster."""
    rows = [
        (
            f"q{n:02}",
            f"c{n // 2}" if place == 0 else f"q{n:02}",
            *(score(system, place, seed, n, metric) for metric in range(4)),
        )
        for n in range(queries)
    ]
    means = {name: sum(row[2 + m] for row in rows) / queries for m, name in enumerate(METRICS)}
    return put(
        store,
        f"e-{system}-{place}-{seed}",
        {"per_query.parquet": table(["query_id", "cluster", *METRICS], rows)},
        texts={"metrics.json": json.dumps(means | {"queries": queries})},
    )


def texts(store: Store, key: str, queries: int) -> Artifact:
    rows = [(f"q{n:02}", f"text {n}") for n in range(queries)]
    made = put(store, key, {"queries.parquet": table(["query_id", "query"], rows)})
    return made.at("queries.parquet")


def compare(store: Store, inputs: dict[str, Artifact], test: str, **options: Any) -> dict[str, Any]:
    chosen = CompareOptions.model_validate({"significance": {"test": test}, **options})
    _, folder = make(store, "compare", chosen, inputs, seed=3)
    return json.loads((folder / "comparison.json").read_text())


def contrasts(*pairs: tuple[str, str]) -> tuple[Contrast, ...]:
    return tuple(Contrast(before=before, after=after, question="?") for before, after in pairs)


def without(golden: list[dict[str, Any]], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave the fields out that the golden does not have."""
    return [
        {name: value for name, value in row.items() if name in expected}
        for row, expected in zip(found, golden, strict=True)
    ]


def eleven_digits(rows: list[dict[str, Any]]) -> Any:
    """Round every number; weights were multiplied in another order."""
    return json.loads(json.dumps(rows), parse_float=lambda text: f"{float(text):.11g}")


@pytest.mark.parametrize("test", ["t", "randomisation"])
def test_one_dataset_and_one_seed_give_the_numbers_of_the_former_report(store, test):
    names = ["bm25", "query", "untrained", "round-1"]
    inputs = {
        f"measured/test/{name}/0": evaluation(store, number, 0, 0, 40)
        for number, name in enumerate(names)
    }
    found = compare(
        store,
        inputs | {"queries/test": texts(store, "queries", 40)},
        test,
        systems=[System(name=name, title=name) for name in names],
        datasets=[MeasuredDataset(name="test")],
        contrasts=contrasts(("query", "untrained"), ("untrained", "round-1"), ("bm25", "round-1")),
    )
    golden = json.loads((GOLDENS / "one_dataset.json").read_text())[test]
    for part, expected in golden.items():
        assert without(expected, found[part]) == expected


def test_several_datasets_and_seeds_give_the_numbers_of_the_former_leaderboard(store):
    seeds = {"bm25": 1, "query": 1, "greedy": 1, "sampled": 3}
    sizes = {"nq": 20, "scifact": 7, "law/a": 3, "law/b": 14, "nano-nq": 12}
    inputs = {}
    for place, (key, queries) in enumerate(sizes.items()):
        inputs[f"queries/{key}"] = texts(store, f"q-{place}", queries)
        for number, (name, count) in enumerate(seeds.items()):
            for seed in range(count):
                made = evaluation(store, number, place + 1, seed, queries)
                inputs[f"measured/{key}/{name}/{seed}"] = made
    audit = put(store, "audit-1", {}, texts={"audit.json": json.dumps(AUDIT)})
    found = compare(
        store,
        inputs | {"audit/law/b/sampled": audit},
        "t",
        systems=[
            System(
                name=name,
                title=name,
                baseline="query" if name in ("greedy", "sampled") else "",
                seeds=count,
            )
            for name, count in seeds.items()
        ],
        datasets=[
            MeasuredDataset(name="nq", benchmark="BEIR", domain="in-domain"),
            MeasuredDataset(name="scifact", benchmark="BEIR", domain="out-of-domain"),
            MeasuredDataset(name="law", subsets=("a", "b")),
            MeasuredDataset(name="nano-nq", benchmark="NanoBEIR", domain="in-domain"),
        ],
        contrasts=contrasts(("query", "greedy"), ("query", "sampled"), ("bm25", "sampled")),
    )
    golden = json.loads((GOLDENS / "datasets.json").read_text())
    for part, expected in golden.items():
        assert eleven_digits(without(expected, found[part])) == eleven_digits(expected)
