"""The verdict: what a comparison says in words, case by case."""

from typing import Any

import pytest

from expandr_core.evaluation.verdict import verdict

TITLES = {
    "bm25": "BM25",
    "query": "query only",
    "round-1": "joint round 1",
    "round-1-query": "joint round 1, query only",
    "round-2": "joint round 2",
}
SCORES = {"bm25": 0.6, "query": 0.8, "round-1": 0.9, "round-1-query": 0.85, "round-2": 0.88}
KEPT = {"expanded": "round-1", "alone": "round-1-query", "reason": "Round 1 of 2 is kept."}


def contrast(effect: str, difference: float = 0.1, dataset: str = "test") -> dict[str, Any]:
    return {
        "dataset": dataset,
        "before": "query",
        "after": "round-1",
        "effect": effect,
        "difference": difference,
        "corrected_p": 0.012,
        "clusters": 4,
    }


def comparison(effect: str, difference: float = 0.1, **scores: float) -> dict[str, Any]:
    values = SCORES | {name.replace("_", "-"): score for name, score in scores.items()}
    return {
        "metric": "ndcg_at_10",
        "significance_level": 0.05,
        "test": "t",
        "systems": [
            {"name": name, "title": title, "baseline": "query" if name == "round-1" else ""}
            for name, title in TITLES.items()
        ],
        "datasets": [{"name": "test"}],
        "results": [
            {"system": name, "dataset": "test", "ndcg_at_10": score}
            for name, score in values.items()
        ],
        "contrasts": [contrast(effect, difference)],
        "kept": KEPT,
    }


def at_search(effect: str, difference: float) -> dict[str, Any]:
    """The test of the kept retriever, without expansions and with them."""
    return contrast(effect, difference) | {"before": "round-1-query"}


def test_models_that_help_are_told_from_expansions_that_help_at_search():
    found = comparison("better")
    found["contrasts"].append(at_search("better", 0.05))
    said = verdict(found)
    assert said.sentences == [
        "Round 1 of 2 is kept.",
        "On this data the trained models help: query only 0.800, joint round 1 0.900 "
        "(+0.100, p = 0.012).",
        "Expansions at search add to that: 0.850 without, 0.900 with (+0.050, p = 0.012).",
        "The best system is joint round 1 with nDCG@10 0.900.",
    ]
    assert said.expand is True


def test_expansions_of_the_retriever_of_the_start_are_said_to_help_or_hurt():
    for effect, difference, word in (("better", 0.1, "help"), ("worse", -0.1, "hurt")):
        found = comparison(effect, difference) | {"kept": KEPT | {"alone": "query"}}
        said = verdict(found).sentences
        assert said[1].startswith(f"On this data these expansions {word}: query only 0.800, ")
        assert not any("at search" in each for each in said)


def test_models_that_hurt_are_said_to_hurt_and_not_to_expand_with():
    said = verdict(comparison("worse", -0.1, round_1=0.7))
    assert said.sentences[1:] == [
        "On this data the trained models hurt: query only 0.800, joint round 1 0.700 "
        "(−0.100, p = 0.012).",
        "Expansions at search were not tested by themselves: 0.850 without, 0.700 with.",
        "No system is shown to be better than query only (0.800); 2 score higher, at best joint round 2 "
        "with nDCG@10 0.880, which no test compares with query only.",
    ]
    assert said.expand is False


def test_a_gain_of_models_that_are_no_better_with_expansions_is_that_of_the_models():
    found = comparison("better", round_1_query=0.95)
    found["contrasts"].append(at_search("unclear", -0.05))
    said = verdict(found)
    assert said.sentences[1].startswith("On this data the trained models help: query only 0.800")
    assert said.sentences[2] == (
        "Expansions at search are not shown to change that: 0.950 without, 0.900 with "
        "(−0.050, p = 0.012)."
    )
    assert said.expand is False


def test_the_test_against_bm25_is_told_whichever_of_the_two_is_best():
    found = comparison("better", bm25=0.95)
    found["contrasts"].append(contrast("worse", -0.05) | {"before": "bm25"})
    assert verdict(found).sentences[-2:] == [
        "Against BM25 (0.950), joint round 1: significantly worse (−0.050, p = 0.012).",
        "The best system is BM25 with nDCG@10 0.950.",
    ]
    found["contrasts"][-1]["effect"] = "equal"
    assert "Against BM25 (0.950), joint round 1: equal on every query (not tested)." in (
        verdict(found).sentences
    )


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        ("unclear", "On this data no difference is shown: query only 0.800"),
        ("too few", "4 observations are too few to tell (at least 6): query only 0.800"),
    ],
)
def test_what_cannot_be_told_is_not_told(effect, words):
    assert verdict(comparison(effect)).sentences[1].startswith(words)


def test_one_observation_is_not_several():
    found = comparison("too few")
    found["contrasts"][0]["clusters"] = 1
    said = verdict(found).sentences[1]
    assert said.startswith("1 observation is too few to tell (at least 6)")


def test_bm25_can_be_best():
    said = verdict(comparison("better", bm25=0.95))
    assert said.sentences[-1] == (
        "The best system is BM25 with nDCG@10 0.950, which no test compares with query only."
    )


def test_a_later_round_that_is_better_here_is_named_beside_the_one_that_is_kept():
    said = verdict(comparison("better", round_2=0.92))
    assert said.sentences[0] == "Round 1 of 2 is kept."
    assert "joint round 2 with nDCG@10 0.920" in said.sentences[-1]


def test_without_kept_models_every_system_that_has_a_baseline_is_judged():
    said = verdict(comparison("better") | {"kept": None})
    assert len(said.sentences) == 2 and said.expand is None


def test_the_best_of_systems_that_differ_by_chance_is_not_praised():
    said = verdict(comparison("unclear", 0.006, round_1=0.806, round_2=0.79, round_1_query=0.8))
    assert said.sentences[-1] == (
        "No system is shown to be better than query only (0.800); 1 scores higher, at best joint "
        "round 1 with nDCG@10 0.806 (+0.006, p = 0.012)."
    )


def test_a_baseline_that_is_not_shown_to_beat_its_own_baseline_is_not_praised():
    variants = comparison("unclear", 0.1) | {"kept": None, "subsets_are": "seeds"}
    variants["systems"][3]["baseline"] = "round-1"  # as a variant of an ablation
    assert verdict(variants).sentences[-1] == (
        "The best system is joint round 1 with nDCG@10 0.900; its lead is not shown to "
        "be more than chance."
    )


def test_systems_without_kept_models_are_judged_by_name_as_they_may_have_no_expansion():
    said = verdict(comparison("worse", -0.1, round_1=0.7) | {"kept": None})
    assert said.sentences[0].startswith("On this data joint round 1 is worse: query only 0.800")


def test_several_datasets_are_counted_and_few_of_them_named():
    several = comparison("better") | {"kept": None}
    names = ["nq", "fever", "scifact"]
    several["datasets"] = [{"name": name} for name in names]
    effects = zip(["better", "worse", "better"], names, strict=True)
    several["contrasts"] = [contrast(effect, dataset=name) for effect, name in effects]
    several["means"] = [
        {"system": name, "scope": "all", "title": "BEIR, mean of 3 of 15", "ndcg_at_10": score}
        for name, score in SCORES.items()
    ]
    assert verdict(several).sentences == [
        "joint round 1 against query only: significantly better on 2 of 3 datasets (nq, scifact), "
        "significantly worse on 1 (fever).",
        "The best system by the mean (BEIR, mean of 3 of 15) is joint round 1 with nDCG@10 0.900.",
    ]
