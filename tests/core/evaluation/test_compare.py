"""One dataset: systems, contrasts, and what is refused."""

import json

import pytest
from evaluation_world import columns, make, put, table

from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import Contrast, MeasuredDataset, System
from expandr_core.evaluation.metrics import METRICS
from expandr_core.evaluation.verdict import Kept
from expandr_core.options.evaluation import SignificanceOptions
from expandr_core.stages.compare import CompareOptions
from expandr_core.store.store import Store

PER_QUERY = ["query_id", "cluster", *METRICS]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


def evaluation(store, key: str, values: list[float], first: int = 0):
    """An evaluation with the same value for all metrics of a query."""
    rows = [(f"q{n}", f"q{n}", *[value] * len(METRICS)) for n, value in enumerate(values, first)]
    metrics = dict.fromkeys(METRICS, sum(values) / len(values)) | {"queries": len(values)}
    tables = {"per_query.parquet": table(PER_QUERY, rows)}
    return put(store, f"evaluate-{key}", tables, texts={"metrics.json": json.dumps(metrics)})


def options(names: list[str], contrasts: list[tuple[str, str]], **more) -> CompareOptions:
    return CompareOptions(
        systems=tuple(System(name=name, title=name.upper() + " | it") for name in names),
        datasets=(MeasuredDataset(name="test"),),
        contrasts=tuple(
            Contrast(before=before, after=after, question=f"{before} < {after}?")
            for before, after in contrasts
        ),
        significance=SignificanceOptions(test="t", significance_level=0.05),
        **more,
    )


def inputs(store, **evaluations):
    """The inputs of the stage, with the texts of ten queries."""
    rows = [(f"q{n}", f"text | {n}") for n in range(10)]
    made = put(store, "queries", {"queries.parquet": table(["query_id", "query"], rows)})
    measured = {f"measured/test/{name}/0": each for name, each in evaluations.items()}
    return {"queries/test": made.at("queries.parquet"), **measured}


def compare(store, chosen: CompareOptions, made):
    artifact, folder = make(store, "compare", chosen, made)
    return artifact, folder, json.loads((folder / "comparison.json").read_text())


def test_a_comparison_tells_each_system_s_metrics_and_each_contrast_s_significance(store):
    low = [n / 20 for n in range(10)]
    high = [value + 0.3 + n % 3 / 100 for n, value in enumerate(low)]
    mixed = [value + (-1) ** n * 0.1 for n, value in enumerate(high)]
    values = {"low": low, "high": high, "mixed": mixed}
    made = inputs(store, **{name: evaluation(store, name, each) for name, each in values.items()})
    pairs = [("low", "high"), ("high", "mixed"), ("high", "low")]
    artifact, _, found = compare(store, options(list(values), pairs), made)

    assert found["schema"] == 1
    assert [row["system"] for row in found["results"]] == ["low", "high", "mixed"]
    assert found["results"][0]["ndcg_at_10"] == pytest.approx(0.225)
    clear, unclear, back = found["contrasts"]
    assert clear["difference"] == pytest.approx(0.309)
    assert (clear["wins"], clear["losses"], clear["clusters"]) == (10, 0, 10)
    assert clear["corrected_p"] == pytest.approx(2 * clear["p"])  # asked back, it is the same test
    assert [each["counted"] for each in found["contrasts"]] == [True, True, False]
    assert (clear["significant"], clear["effect"]) == (True, "better")
    assert (unclear["wins"], unclear["losses"]) == (5, 5)
    assert unclear["p"] == pytest.approx(1)
    assert (unclear["significant"], unclear["effect"]) == (False, "unclear")
    assert (back["significant"], back["effect"]) == (True, "worse")
    assert (back["p"], back["corrected_p"]) == (clear["p"], clear["corrected_p"])
    assert artifact.counts == {
        "systems": 3, "datasets": 1, "contrasts": 3, "significant_contrasts": 2
    }  # fmt: skip


def test_too_few_observations_are_named_so(store):
    made = inputs(
        store,
        a=evaluation(store, "a", [0.1, 0.2, 0.3, 0.4, 0.5]),
        b=evaluation(store, "b", [0.2, 0.3, 0.4, 0.5, 0.6]),
    )
    _, folder, found = compare(store, options(["a", "b"], [("a", "b")]), made)
    assert found["contrasts"][0]["effect"] == "too few"
    said = "fewer than 6 are too few to tell anything at 0.05."
    assert said in (folder / "report.md").read_text()


def test_a_p_value_at_the_level_does_not_count_and_the_option_says_so(store):
    made = inputs(store, a=evaluation(store, "a", [0.1] * 6), b=evaluation(store, "b", [0.2] * 6))
    at_p = SignificanceOptions(significance_level=2 / 2**6)
    asked = options(["a", "b"], [("a", "b")]).model_copy(update={"significance": at_p})
    _, _, found = compare(store, asked, made)
    assert found["contrasts"][0]["corrected_p"] == 2 / 2**6
    assert not found["contrasts"][0]["significant"]
    said = SignificanceOptions.model_fields["significance_level"].description
    assert said and said.endswith("is below.")


@pytest.mark.parametrize(("test", "effect"), [("t", "unclear"), ("randomisation", "too few")])
def test_ten_observations_are_too_few_at_a_strict_level_for_the_test_that_needs_more(
    store, test, effect
):
    low = [n / 20 for n in range(10)]
    mixed = [value + (-1) ** n * 0.1 for n, value in enumerate(low)]
    made = inputs(store, a=evaluation(store, "a", low), b=evaluation(store, "b", mixed))
    strict = SignificanceOptions(test=test, significance_level=0.001)
    asked = options(["a", "b"], [("a", "b")]).model_copy(update={"significance": strict})
    _, _, found = compare(store, asked, made)
    assert found["contrasts"][0]["effect"] == effect


def test_the_report_has_a_row_for_each_system_and_contrast(store):
    made = inputs(store, a=evaluation(store, "a", [0.1, 0.2]), b=evaluation(store, "b", [0.1, 0.3]))
    _, folder, _ = compare(store, options(["a", "b"], [("a", "b")]), made)
    cells = [
        [cell.strip() for cell in line.split(" | ")]
        for line in (folder / "report.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    assert cells[0][3:8] == ["queries", "nDCG@10", "MAP", "Recall@100", "MRR@10"]
    assert cells[2][:8] == ["| test", "A \\| it", "other", "2", *["0.150"] * 4]
    [contrast] = [row for row in cells if row[0].startswith("| a \\< b?")]
    assert contrast[1:5] == ["A \\| it → B \\| it", "test", "+0.050", "1.000"]
    assert cells[-1][1:] == ["q1", "text \\| 1", "0.200", "0.300", "+0.100 |"]


def test_a_star_never_stands_without_the_word_for_better_or_worse(store):
    low, high = [n / 20 for n in range(10)], [0.4 + n / 21 for n in range(10)]
    made = inputs(store, low=evaluation(store, "low", low), high=evaluation(store, "high", high))
    chosen = options(["low", "high"], [("low", "high"), ("high", "low")])
    _, folder, _ = compare(store, chosen, made)
    rows = [line for line in (folder / "report.md").read_text().splitlines() if "?" in line]
    assert ["* better" in rows[0], "* worse" in rows[1]] == [True, True]


def test_what_makes_its_numbers_doubtful_stands_in_the_report(store):
    made = inputs(store, a=evaluation(store, "a", [0.1, 0.2]))
    sure, _, _ = compare(store, options(["a"], []), made)
    doubtful = options(["a"], [], warnings=("expand: all texts are empty",))
    artifact, folder, found = compare(store, doubtful, made)
    assert artifact.key != sure.key
    assert "**Warning**: expand: all texts are empty." in (folder / "report.md").read_text()
    assert found["warnings"] == ["expand: all texts are empty"]


def test_the_verdict_stands_in_the_report_with_what_to_do(store):
    made = inputs(store, a=evaluation(store, "a", [0.3, 0.4]), b=evaluation(store, "b", [0.1, 0.3]))
    kept = Kept(expanded="b", alone="a", reason="Round 1 was best on the dev queries.")
    _, folder, found = compare(store, options(["a", "b"], [], kept=kept), made)
    assert found["verdict"]["expand"] is False
    text = (folder / "report.md").read_text()
    assert "Round 1 was best on the dev queries. Expansions at search were not tested" in text
    assert "The best system is A \\| it" in text
    assert "`expandr search --no-expand`" in text


def test_without_contrasts_there_are_systems_only(store):
    made = inputs(store, a=evaluation(store, "a", [0.1, 0.2]))
    _, folder, found = compare(store, options(["a"], []), made)
    assert found["contrasts"] == found["examples"] == []
    assert "## Tests" not in (folder / "report.md").read_text()


def test_systems_measured_on_different_queries_cannot_be_compared(store):
    made = inputs(
        store,
        a=evaluation(store, "a", [0.1, 0.2]),
        b=evaluation(store, "b", [0.1, 0.2], first=2),
    )
    said = "on test, from 'a' to 'b': only systems measured on the same"
    with pytest.raises(DataError, match=said):
        compare(store, options(["a", "b"], [("a", "b")]), made)


def test_unknown_systems_are_refused(store):
    made = inputs(store, a=evaluation(store, "a", [0.1, 0.2]))
    with pytest.raises(
        DataError, match=r"'a < b\?' is about systems that are not measured: \['b'\]"
    ):
        compare(store, options(["a"], [("a", "b")]), made)
    kept = Kept(expanded="a", alone="d", reason="It was best.")
    with pytest.raises(DataError, match=r"'It was best.' is about .* not measured: \['d'\]"):
        compare(store, options(["a"], [], kept=kept), made)
    with pytest.raises(DataError, match="no evaluation 'measured/test/c/0'"):
        compare(store, options(["a", "c"], []), made)


def test_a_gain_and_its_reverse_differ_in_sign_only(store):
    made = inputs(
        store,
        a=evaluation(store, "a", [0.1, 0.2, 0.3]),
        b=evaluation(store, "b", [0.3, 0.5, 0.7]),
    )
    _, _, found = compare(store, options(["a", "b"], [("a", "b"), ("b", "a")]), made)
    gain, loss = found["contrasts"]
    assert gain["difference"] == pytest.approx(0.3) == -loss["difference"]
    assert gain["p"] == loss["p"] == 0.25  # of eight ways to exchange, two differ as much


def test_the_stage_is_made_anew_when_a_question_changes(store):
    made = inputs(store, a=evaluation(store, "a", [0.1, 0.2]), b=evaluation(store, "b", [0.1, 0.3]))
    first, _, _ = compare(store, options(["a", "b"], [("a", "b")]), made)
    second, _, _ = compare(store, options(["a", "b"], [("b", "a")]), made)
    assert first.key != second.key


def test_each_query_s_difference_is_kept_for_every_contrast(store):
    made = inputs(
        store, a=evaluation(store, "a", [0.1, 0.5]), b=evaluation(store, "b", [0.4, 0.25])
    )
    _, folder, found = compare(store, options(["a", "b"], [("a", "b"), ("b", "a")]), made)
    rows = columns(folder / "differences.parquet")
    assert rows["before"] == ["a", "a", "b", "b"]
    assert rows["after"] == ["b", "b", "a", "a"]
    assert rows["query_id"] == ["q0", "q1", "q0", "q1"]
    assert rows["query"] == ["text | 0", "text | 1"] * 2
    assert rows["before_score"] == [0.1, 0.5, 0.4, 0.25]
    assert rows["difference"] == pytest.approx([0.3, -0.25, -0.3, 0.25])
    assert [row["query_id"] for row in found["examples"]] == ["q0", "q1", "q1", "q0"]
