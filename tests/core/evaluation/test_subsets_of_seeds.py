"""Systems that were made anew with several seeds: paired within a seed, and means over seeds."""

import json
from typing import Any

import pytest
from evaluation_world import make, put, table
from scipy import stats

from expandr_core.evaluation.comparison import Contrast, MeasuredDataset, System
from expandr_core.evaluation.metrics import METRICS
from expandr_core.options.base import identity
from expandr_core.stages.compare import CompareOptions
from expandr_core.store.store import Store

PER_QUERY = ["query_id", "cluster", *METRICS]
BEFORE = {"seed-0": [n / 40 for n in range(12)], "seed-1": [n / 30 for n in range(12)]}
CHANGE = {
    "seed-0": [0.10 + n % 3 / 50 for n in range(12)],
    "seed-1": [0.06 - n % 4 / 50 for n in range(12)],
}


@pytest.fixture
def compared(tmp_path):
    """Compare two systems of two seeds with twelve queries each, the ids the same in both."""
    store = Store(str(tmp_path / "store"))
    inputs = {}
    for seed, before in BEFORE.items():
        texts = [(f"q{n}", f"text {n}") for n in range(12)]
        made = put(store, f"queries-{seed}", {"q.parquet": table(["query_id", "query"], texts)})
        inputs[f"queries/test/{seed}"] = made.at("q.parquet")
        after = [score + change for score, change in zip(before, CHANGE[seed], strict=True)]
        for name, scores in {"base": before, "line": after}.items():
            rows = [(f"q{n}", f"q{n}", *[score] * len(METRICS)) for n, score in enumerate(scores)]
            metrics = dict.fromkeys(METRICS, sum(scores) / 12) | {"queries": 12}
            inputs[f"measured/test/{seed}/{name}/0"] = put(
                store,
                f"evaluate-{seed}-{name}",
                {"per_query.parquet": table(PER_QUERY, rows)},
                texts={"metrics.json": json.dumps(metrics)},
            )

    def compare(subsets_are: Any) -> tuple[dict[str, Any], str]:
        options = CompareOptions(
            systems=(
                System(name="base", title="base"),
                System(name="line", title="a line", baseline="base"),
            ),
            datasets=(MeasuredDataset(name="test", subsets=tuple(BEFORE)),),
            contrasts=(Contrast(before="base", after="line", question="What does it bring?"),),
            significance={},
            subsets_are=subsets_are,
        )
        _, folder = make(store, "compare", options, inputs)
        found = json.loads((folder / "comparison.json").read_text())
        return found, (folder / "report.md").read_text()

    return compare


def test_worlds_have_clusters_of_their_own(compared):
    found, report = compared("worlds")
    [contrast] = found["contrasts"]
    changes = [change for seed in CHANGE.values() for change in seed]
    assert (contrast["clusters"], contrast["queries"]) == (24, 24)
    assert contrast["p"] == pytest.approx(stats.ttest_1samp(changes, 0)[1])
    assert contrast["difference"] == pytest.approx(sum(changes) / 24)
    assert "whose world has clusters of its own" in report


def test_a_query_that_several_seeds_measure_is_one_observation(compared):
    found, report = compared("seeds")
    [contrast] = found["contrasts"]
    means = [sum(pair) / 2 for pair in zip(*CHANGE.values(), strict=True)]
    assert (contrast["clusters"], contrast["queries"]) == (12, 24)
    assert contrast["p"] == pytest.approx(stats.ttest_1samp(means, 0)[1])
    assert "a cluster is one observation over all seeds" in report


def test_a_result_is_the_mean_over_seeds_with_its_deviation(compared):
    found, report = compared("worlds")
    for row, add in zip(found["results"], (0, 1), strict=True):
        own = [
            sum(BEFORE[seed][n] + add * CHANGE[seed][n] for n in range(12)) / 12 for seed in BEFORE
        ]
        assert row["ndcg_at_10"] == pytest.approx(sum(own) / 2)
        assert row["ndcg_at_10_deviation"] == pytest.approx(abs(own[0] - own[1]) / 2**0.5)
        assert (row["queries"], row["seeds"]) == (12, 2)
    assert "Everything was made anew with each of 2 seeds" in report


def test_the_verdict_says_what_every_line_brings(compared):
    found, _ = compared("worlds")
    assert found["verdict"]["sentences"][0] == "Against base, significantly better: a line."


def test_parts_of_a_dataset_stay_what_they_were(compared):
    found, report = compared("parts")
    [contrast] = found["contrasts"]
    assert contrast["clusters"] == 24
    assert "subsets_are" not in found and "anew" not in report
    assert found["results"][0]["ndcg_at_10_deviation"] is None
    plain = CompareOptions(
        systems=(System(name="a", title="a"),),
        datasets=(MeasuredDataset(name="test"),),
        contrasts=(),
        significance={},
    )
    assert "subsets_are" not in identity(plain)
