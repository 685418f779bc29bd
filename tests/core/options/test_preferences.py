"""Which rewards can be asked for: what cannot work is refused before anything runs."""

import pytest

from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.options.retriever import RetrieverOptions


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"retriever_weight": 0, "self_weight": 0}, "both 0"),
        ({"retriever_weight": -1}, "greater than or equal to 0"),
        ({"reward": "corpus_rank", "retriever_weight": 0}, "decides nothing"),
        ({"reward_k": 5}, "only the reward 'ndcg_delta'"),
        ({"minimum_margin": 2}, "less than 2"),
        ({"minimum_margin": 1, "self_weight": 0}, "less than 1"),
        ({"minimum_margin": 3, "reward": "similarity"}, "less than 3"),
        ({"reward_encoder": "tiny"}, "cannot be 'tiny'"),
        ({"reward_encoder": {"convention": "contriever"}}, "'current'"),
    ],
)
def test_what_cannot_work_is_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        PreferenceOptions(**options)


def test_margins_may_be_as_large_as_the_reward_allows():
    assert PreferenceOptions(minimum_margin=2.5, reward="similarity").largest_margin == 3
    assert PreferenceOptions(minimum_margin=3.5, retriever_weight=3).largest_margin == 4


@pytest.mark.parametrize("asked", [{"reward": "ndcg_delta"}, {"beats_query": True}])
def test_retrieval_by_expanded_queries_needs_a_weight_of_the_expansions(asked):
    alone = RetrieverOptions.model_validate({"fusion": {"expansion_weight": 0}})
    with pytest.raises(ValueError, match=r"expansion_weight is 0; raise it"):
        JointLoopOptions(preferences=PreferenceOptions(**asked), retriever=alone)
    ranks = RetrieverOptions.model_validate({"fusion": {"method": "rrf"}})
    with pytest.raises(ValueError, match=r"'rrf' fuses ranks; choose another method"):
        JointLoopOptions(preferences=PreferenceOptions(**asked), retriever=ranks)


def test_another_encoder_has_a_convention_of_its_own_and_the_retrievers_lengths():
    options = JointLoopOptions.model_validate(
        {
            "retriever": {
                "convention": "e5",
                "encoding": {"max_tokens": 64, "similarity": "dot"},
                "fusion": {"expansion_weight": 0.25},
            },
            "preferences": {"reward_encoder": {"model": "some/folder", "convention": "contriever"}},
        }
    )
    encoder = options.rewarding
    assert (encoder.model, encoder.convention.name) == ("some/folder", "contriever")
    assert (encoder.encoding.similarity, encoder.encoding.max_tokens) == ("model", 64)
    assert encoder.fusion.expansion_weight == 0.25
    assert PreferenceOptions.model_validate({"reward_encoder": "x"}).reward_encoder.model == "x"
    assert JointLoopOptions().rewarding == JointLoopOptions().retriever
