"""What a report says beside its numbers is true for gains, losses and chance alike."""

import copy

import pytest

from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.reports.limits import leaks_of, limits_of
from expandr_core.reports.models import beginnings_of, dev_scores_of
from expandr_core.reports.suggestions import suggestions_of
from expandr_core.store.run_records import StepId


@pytest.fixture
def changed(report) -> dict:
    return copy.deepcopy(report)


def test_the_verdict_names_the_models_that_wrote_and_searched(report):
    [texts, search] = report["beginnings"]
    assert texts.startswith(
        "The texts were written by a tiny LLM that was built from the collection's"
    )
    assert search.startswith("The search began with a tiny retriever that was built")
    said = " ".join(report["cannot_say"])
    assert said.startswith(
        "Texts were written by a tiny LLM and searches began with a tiny retriever, both built from"
    )
    assert "this tests the pipeline" in said and "pretraining" not in said


def test_one_built_model_is_named_alone(changed):
    changed["models"] = [each for each in changed["models"] if each["role"] == "retriever"]
    assert limits_of(changed)[0].startswith("Searches began with a tiny retriever, built from")


def test_the_size_of_a_corpus_that_is_gone_is_not_told(changed):
    changed["datasets"] = []
    [said] = [each for each in limits_of(changed) if each.startswith("One collection")]
    assert said == "One collection was measured: nothing is known of other domains or languages."


@pytest.mark.parametrize("named", ["paired t-test", "paired randomisation test"])
def test_few_observations_are_told_with_the_test_that_was_made(changed, named):
    changed["headline"] |= {"clusters": 12, "test_title": named}
    said = f"There are only 12 independent observations for the {named}: small"
    assert any(each.startswith(said) for each in limits_of(changed))


def test_an_imported_llm_may_have_read_the_texts_and_is_no_toy(changed):
    imported = {
        "role": "llm",
        "key": "",
        "name": "org/llm",
        "about": "imported, 9 MB",
        "built": False,
    }
    changed["models"] = [imported]
    said = " ".join(limits_of(changed))
    assert "What org/llm read in its pretraining is unknown" in said
    assert "tests the pipeline" not in said
    assert beginnings_of([imported])[0].startswith(
        "The texts were written by org/llm (imported, 9 MB)"
    )


def test_the_choice_of_one_round_is_told_with_its_dev_scores_and_without_praise(report):
    [said] = [each for each in report["cannot_say"] if "dev queries" in each]
    assert said.startswith("Whether round 1 is kept was decided on 18 dev queries (the start 0.")
    assert "another" not in said


@pytest.mark.parametrize(
    ("effect", "words"),
    [("better", "whether the gain goes on"), ("unclear", "No gain is shown after the one round")],
)
def test_a_second_round_is_suggested_after_a_gain_only(changed, effect, words):
    changed["headline"]["effect"] = effect
    assert any(words in each for each in suggestions_of(changed))


def test_a_loss_by_expansions_and_one_by_other_models_have_different_remedies(changed):
    tests = {(test["before"], test["after"]): test for test in changed["tests"]}
    tests["query", "untrained"]["effect"] = tests["query", "control"]["effect"] = "worse"
    said = [each for each in suggestions_of(changed) if each.startswith("Worse than query only")]
    assert len(said) == 2
    assert "+ untrained expansion (−0.028). Search without expansions" in said[0]
    assert said[1].endswith("Keep query only.")


def test_systems_that_rank_alike_name_each_other_and_equal_ones_have_no_test(report):
    rows = {row["system"]: row for row in report["systems"]}
    for row in rows.values():
        alike = [other for other in rows.values() if other["title"] == row["equals"]]
        assert all(other["ndcg_at_10"] == row["ndcg_at_10"] for other in alike)
    for test in report["tests"]:
        equal = test["wins"] == test["losses"] == 0
        assert equal == (test["effect"] == "equal") == (test["corrected_p"] is None)


def test_code_that_was_not_committed_is_said_to_be_no_version(changed):
    changed["code"]["commits"] = ["a1b2"]
    assert not any("code" in each for each in limits_of(changed))
    changed["code"]["commits"] = ["a1b2", "c3d4-dirty"]
    assert any("2 commits, partly changed and not committed" in each for each in limits_of(changed))


@pytest.mark.parametrize(
    ("without", "words"),
    [(0.023, "the gain is +0.023, not +0.297."), (None, "none is left without them.")],
)
def test_what_leaks_is_told_with_the_gain_that_is_left(changed, without, words):
    marked = {"queries": 180, "gain_without": without}
    audit = {"queries": 300, "title": "joint", "dataset": "test", "gain": 0.297, "any": marked}
    audit["system"] = changed["headline"]["after"]
    changed["leakage"] = [audit | {"system": "control", "title": "control"}, audit]
    [said] = [each for each in limits_of(changed) if "leaked" in each]
    assert said.startswith("Of 300 queries 180 may be leaked for joint on test: ")
    assert said.endswith(words)
    assert leaks_of(changed, 0.5) == [said] and leaks_of(changed, 0.6) == []


def test_a_control_that_gains_as_much_is_named_first(changed):
    head = changed["headline"]
    tests = {(test["before"], test["after"]): test for test in changed["tests"]}
    head["effect"] = "better"
    tests["control", head["after"]]["effect"] = "better"
    assert not any(each.startswith("The SFT control") for each in suggestions_of(changed))
    tests["control", head["after"]]["effect"] = "unclear"
    assert suggestions_of(changed)[0].startswith("The SFT control changes query only by ")
    tests["query", "control"]["after_title"] = "control, trained without expansions"
    assert suggestions_of(changed)[0].startswith("The control, trained without expansions, changes")


def test_expansions_that_are_cut_are_told(changed):
    changed["written"] = {"texts": 1000, "truncated": 200}
    assert not any("expansions are cut" in each for each in suggestions_of(changed))
    changed["written"] = {"texts": 1000, "truncated": 998}
    [said] = [each for each in suggestions_of(changed) if "expansions are cut" in each]
    assert said.startswith("998 of 1,000 expansions are cut at the limit of ")


def test_a_row_names_its_own_baseline(report):
    rows = {row["system"]: row for row in report["systems"]}
    assert rows["round-1"]["against"] == rows["query"]["title"] and rows["query"]["against"] == ""


def test_the_gate_of_promotion_is_no_choice_of_a_round(recorded, run):
    steps = [
        step.model_copy(update={"id": StepId("compare", 0, "promotion/1/")})
        if step.id.round
        else step
        for step in run.steps
        if step.id.stage == "compare"
    ]
    assert dev_scores_of(ComparedRun(recorded, run))
    assert dev_scores_of(ComparedRun(recorded, run.model_copy(update={"steps": steps}))) == []
