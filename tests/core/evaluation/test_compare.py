"""The report: systems, steps, and what is refused."""

import json

import pytest
from evaluation_world import columns, make, put, table

from expandr_core.errors import DataError
from expandr_core.evaluation.metrics import METRICS
from expandr_core.stages import compare
from expandr_core.stages.compare import OPTIONS, StepOptions, System, gain
from expandr_core.store.store import Store

PER_QUERY = ["query_id", "cluster", *METRICS]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def evaluation(store, key: str, values: list[float], first: int = 0):
    """An evaluation with the same value for all metrics of a query."""
    rows = [(f"q{n}", f"q{n}", *[value] * 4) for n, value in enumerate(values, first)]
    metrics = dict.fromkeys(METRICS, sum(values) / len(values)) | {"queries": len(values)}
    tables = {"per_query.parquet": table(PER_QUERY, rows)}
    return put(store, f"evaluate-{key}", tables, texts={"metrics.json": json.dumps(metrics)})


def options(roles: list[str], steps: list[tuple[str, str]], test="t") -> OPTIONS:
    return OPTIONS(
        systems=tuple(System(role=r, title=r.upper() + " | it", split="test") for r in roles),
        steps=tuple(StepOptions(before=b, after=a, question=f"{b} < {a}?") for b, a in steps),
        test=test,
        significance_level=0.05,
    )


def test_the_report_tells_each_system_s_metrics_and_each_step_s_significance(store):
    low = [n / 20 for n in range(10)]
    high = [value + 0.3 + n % 3 / 100 for n, value in enumerate(low)]
    mixed = [value + (-1) ** n * 0.1 for n, value in enumerate(high)]
    inputs = {
        "low": evaluation(store, "low", low),
        "high": evaluation(store, "high", high),
        "mixed": evaluation(store, "mixed", mixed),
    }
    chosen = options(["low", "high", "mixed"], [("low", "high"), ("high", "mixed")])
    artifact, folder = make(store, "compare", chosen, inputs)
    report = json.loads((folder / "report.json").read_text())

    assert [system["role"] for system in report["systems"]] == ["low", "high", "mixed"]
    assert report["systems"][0]["ndcg_at_10"] == pytest.approx(0.225)
    clear, unclear = report["steps"]
    assert clear["difference"] == pytest.approx(0.309)
    assert (clear["wins"], clear["losses"], clear["clusters"]) == (10, 0, 10)
    assert clear["corrected_p"] == pytest.approx(2 * clear["p"])
    assert clear["significant"] is True
    assert (unclear["wins"], unclear["losses"]) == (5, 5)
    assert unclear["p"] == pytest.approx(1)
    assert unclear["significant"] is False
    assert artifact.counts == {"systems": 3, "steps": 2, "significant_steps": 1}
    assert columns(folder / "systems.parquet")["role"] == ["low", "high", "mixed"]


def test_the_report_to_read_has_a_row_for_each_system_and_step(store):
    inputs = {"a": evaluation(store, "a", [0.1, 0.2]), "b": evaluation(store, "b", [0.1, 0.2])}
    _, folder = make(store, "compare", options(["a", "b"], [("a", "b")]), inputs)
    lines = (folder / "report.md").read_text().splitlines()
    assert lines[2] == ("| system  | split | queries | nDCG@10 |   MAP | Recall@100 | MRR@10 |")
    assert lines[4] == ("| A \\| it | test  |       2 |   0.150 | 0.150 |      0.150 |  0.150 |")
    assert lines[-1].startswith("| a < b?   | A \\| it → B \\| it |     +0.000 | 1.000 |")


def test_what_makes_its_numbers_doubtful_stands_in_the_report(store):
    inputs = {"a": evaluation(store, "a", [0.1, 0.2])}
    plain = options(["a"], [])
    doubtful = OPTIONS(**{**dict(plain), "warnings": ("expand: all texts are empty",)})
    (sure, _), (made, folder) = (make(store, "compare", each, inputs) for each in (plain, doubtful))
    assert made.key != sure.key
    assert "**Warning**: expand: all texts are empty." in (folder / "report.md").read_text()
    report = json.loads((folder / "report.json").read_text())
    assert report["warnings"] == ["expand: all texts are empty"]


def test_without_steps_the_report_has_systems_only(store):
    inputs = {"a": evaluation(store, "a", [0.1, 0.2])}
    _, folder = make(store, "compare", options(["a"], []), inputs)
    assert json.loads((folder / "report.json").read_text())["steps"] == []


def test_systems_measured_on_different_queries_cannot_be_a_step(store):
    inputs = {
        "dev": evaluation(store, "dev", [0.1, 0.2]),
        "test": evaluation(store, "test", [0.1, 0.2], first=2),
    }
    with pytest.raises(DataError, match="from 'dev' to 'test': only systems measured on the same"):
        make(store, "compare", options(["dev", "test"], [("dev", "test")]), inputs)


def test_unknown_systems_are_refused(store):
    inputs = {"a": evaluation(store, "a", [0.1, 0.2])}
    with pytest.raises(DataError, match=r"names unknown systems: \['b'\]"):
        make(store, "compare", options(["a"], [("a", "b")]), inputs)
    with pytest.raises(DataError, match="no evaluation of the system 'c'"):
        make(store, "compare", options(["a", "c"], []), inputs)


def test_a_gain_is_the_difference_of_two_evaluations(store):
    before, after = evaluation(store, "1", [0.1, 0.2, 0.3]), evaluation(store, "2", [0.3, 0.5, 0.7])
    found = gain(store.local(before), store.local(after), "t", seed=0)
    assert found.difference == pytest.approx(0.3)
    assert found.p == 0.25  # of eight ways to exchange, two differ as much
    back = gain(store.local(after), store.local(before), "t", seed=0)
    assert back.difference == pytest.approx(-0.3)


def test_the_stage_is_made_anew_when_a_question_changes(store):
    inputs = {"a": evaluation(store, "a", [0.1, 0.2]), "b": evaluation(store, "b", [0.1, 0.3])}
    first, _ = make(store, "compare", options(["a", "b"], [("a", "b")]), inputs)
    second, _ = make(store, "compare", options(["a", "b"], [("b", "a")]), inputs)
    assert first.key != second.key
    assert compare.VERSION == 3


def test_each_query_s_difference_is_kept_for_every_step(store):
    inputs = {"a": evaluation(store, "a", [0.1, 0.5]), "b": evaluation(store, "b", [0.4, 0.25])}
    _, folder = make(store, "compare", options(["a", "b"], [("a", "b"), ("b", "a")]), inputs)
    rows = columns(folder / "differences.parquet")
    assert rows["before"] == ["a", "a", "b", "b"]
    assert rows["after"] == ["b", "b", "a", "a"]
    assert rows["query_id"] == ["q0", "q1", "q0", "q1"]
    assert rows["before_score"] == [0.1, 0.5, 0.4, 0.25]
    assert rows["difference"] == pytest.approx([0.3, -0.25, -0.3, 0.25])
