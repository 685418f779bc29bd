"""The stages reward and pairs: known cases through real vectors, joined by id, drops counted."""

import random
import shutil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_world import make, of_shards, put
from flat_options import flat
from store_keys import full

from expandr_core.encoders.encode import Encoder
from expandr_core.errors import DataError
from expandr_core.options.base import identity
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.options.retriever import EncodingOptions
from expandr_core.preferences.pairs import settled
from expandr_core.records import EXPANSIONS
from expandr_core.stages import pairs as pairs_stage
from expandr_core.stages import reward
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

# word -> (similarity to the positive, similarity to the answer), as inner products
DOT = EncodingOptions(similarity="dot", max_tokens=16)
VECTORS = {
    "positive": (1, 0),
    "answer": (0, 1),
    "a": (0.9, 0.1),
    "b": (0.5, 0.8),
    "c": (0.3, 0.3),
    "d": (0.1, 0.6),
    "edge": (0.35, 0.25),
    "below": (0.35, 0.2499),
    "far": (0.01, 0.02),
}
FOUR = ["a", "b", "c", "d"]
Texts = dict[str, list[str]]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def retriever_folder(tmp_path_factory):
    """A retriever that gives each word the vector above; a text is the mean of its words."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: place for place, word in enumerate(["[UNK]", *VECTORS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    module = StaticEmbedding(
        tokenizer, embedding_weights=torch.tensor([(0.0, 0.0), *VECTORS.values()])
    )
    folder = tmp_path_factory.mktemp("retriever")
    SentenceTransformer(modules=[module], device="cpu").save(str(folder), create_model_card=False)
    return folder


def expansions(store: Store, key: str, shards: list[list[tuple[str, int, str]]]) -> Artifact:
    parts = []
    for place, rows in enumerate(shards):
        table = pa.Table.from_pylist(
            [
                {
                    "query_id": query_id,
                    "sample": sample,
                    "sampling_temperature": 1.0,
                    "text": text,
                    "finish_reason": "length" if text == "a" else "stop",
                    "tokens": 1,
                }
                for query_id, sample, text in rows
            ],
            EXPANSIONS,
        )
        parts.append(put(store, f"{key}_shard-{place}", {"expansions.parquet": table}))
    return put(store, key, {}, parts)


def candidate_rows(texts: Texts) -> list[tuple[str, int, str]]:
    return [(id_, sample, text) for id_, own in texts.items() for sample, text in enumerate(own)]


def rewarded(
    store: Store,
    retriever_folder,
    candidates: list[list[tuple[str, int, str]]],
    answers: list[list[tuple[str, int, str]]],
    queries: list[str],
    encoding: EncodingOptions = DOT,
    story: dict[str, Any] | None = None,
    **weights: Any,
):
    """Run the stage on shards of (query_id, sample, text) rows; without answers, without that input."""
    name = str(len(store.keys()))
    model = store.scratch / "model"
    model.mkdir(exist_ok=True)
    shutil.copytree(retriever_folder, model, dirs_exist_ok=True)
    examples = pa.table(
        {
            "query_id": queries,
            "query": [f"question {query_id}" for query_id in queries],
            "positive_id": ["p" for _ in queries],
            "positive": ["positive" for _ in queries],
        }
    )
    inputs = {
        "retriever": store.commit(
            full(f"retriever-{name}"), model, [], {"counts": {}} | (story or {})
        ),
        "candidates": expansions(store, f"candidates-{name}", candidates),
        **({"answers": expansions(store, f"answers-{name}", answers)} if answers else {}),
        "examples": put(store, f"examples-{name}", {"e.parquet": examples}).at("e.parquet"),
    }
    return make(store, "reward", reward.OPTIONS(encoding=encoding, **weights), inputs)[0]


@pytest.fixture
def paired(store, retriever_folder):
    """Return a function that rewards candidates by query and makes pairs of them."""

    def run(texts: Texts, seed: int = 0, **options):
        rows, answers = candidate_rows(texts), [(id_, 0, "answer") for id_ in texts]
        artifact = rewarded(store, retriever_folder, [rows], [answers], list(texts))
        chosen = flat(pairs_stage.OPTIONS, **({"dpo_dev_share": 0} | options))
        made, folder = make(store, "pairs", chosen, {"rewards": artifact}, seed)
        return made.counts, pq.read_table(folder / "pairs.parquet").to_pylist()

    return run


# Reward


def test_four_candidates_by_hand(store, retriever_folder):
    made = rewarded(
        store, retriever_folder, [candidate_rows({"q": FOUR})], [[("q", 0, "answer")]], ["q"]
    )
    rows = of_shards(store, made, "rewards.parquet")
    assert rows["text"] == FOUR
    assert rows["query"] == ["question q"] * 4
    assert rows["retriever_similarity"] == pytest.approx([0.9, 0.5, 0.3, 0.1])
    assert rows["self_similarity"] == pytest.approx([0.1, 0.8, 0.3, 0.6])
    assert rows["retriever_reward"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert rows["self_reward"] == pytest.approx([1 / 4, 1, 1 / 3, 1 / 2])
    assert rows["reward"] == pytest.approx([5 / 4, 3 / 2, 2 / 3, 3 / 4])
    assert rows["similarity"] == pytest.approx([1, 1.3, 0.6, 0.7])
    assert rows["apart"] == [True, False, True, True]
    assert len(set(rows["tie"])) == 4
    assert rows["finish_reason"] == ["length", "stop", "stop", "stop"]
    assert made.counts["candidates"] == 4
    assert made.counts["queries"] == 1
    assert made.counts["mean_retriever_similarity"] == pytest.approx(0.45)


def test_similarities_are_cosines_if_vectors_are_normalised(store, retriever_folder):
    candidates, answers = [candidate_rows({"q": FOUR})], [[("q", 0, "answer")]]
    made = rewarded(store, retriever_folder, candidates, answers, ["q"], encoding=EncodingOptions())
    rows = of_shards(store, made, "rewards.parquet")
    assert rows["retriever_similarity"] == pytest.approx(
        [0.9 / 0.82**0.5, 0.5 / 0.89**0.5, 0.5**0.5, 0.1 / 0.37**0.5], rel=1e-6
    )


def test_rows_are_joined_by_id_in_any_order(store, retriever_folder):
    texts = {"q2": FOUR, "q1": ["d", "c", "a"], "q3": ["b", "far"]}
    rows, answers = candidate_rows(texts), [(id_, 0, "answer") for id_ in ("q3", "q1", "q2")]
    artifact = rewarded(store, retriever_folder, [sorted(rows)], [sorted(answers)], sorted(texts))
    shuffled = random.Random(0).sample(rows, len(rows))
    again = rewarded(store, retriever_folder, [shuffled], [answers], ["q3", "q2", "q1"])
    assert shuffled != sorted(rows)
    assert again.digest == artifact.digest


def test_several_shards_are_all_rewarded(store, retriever_folder):
    shards = [candidate_rows({id_: FOUR}) for id_ in ("q1", "q2")]
    answers = [[(id_, 0, "answer")] for id_ in ("q1", "q2")]
    made = rewarded(store, retriever_folder, shards, answers, ["q1", "q2"])
    assert of_shards(store, made, "rewards.parquet")["query_id"] == ["q1"] * 4 + ["q2"] * 4
    assert made.counts["queries"] == 2


def test_queries_share_the_vector_of_a_text(store, retriever_folder, monkeypatch):
    encoded: list[str] = []
    encode = Encoder.encode_passages

    def listed(self: Encoder, texts: list[str]):
        encoded.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode_passages", listed)
    rows = candidate_rows({"q1": ["a", "b"], "q2": ["b", "a", "answer"]})
    answers = [("q1", 0, "answer"), ("q2", 0, "c")]
    made = rewarded(store, retriever_folder, [rows], [answers], ["q1", "q2"])
    assert sorted(encoded) == ["a", "answer", "b", "c", "positive"]
    found = of_shards(store, made, "rewards.parquet")
    assert found["text"] == ["a", "b", "b", "a", "answer"]
    assert found["retriever_similarity"] == pytest.approx([0.9, 0.5, 0.5, 0.9, 0])
    assert found["self_similarity"] == pytest.approx([0.1, 0.8, 0.39, 0.3, 0.3])


def test_of_several_answers_the_first_sample_counts(store, retriever_folder):
    answers = [[("q", 1, "positive"), ("q", 0, "answer")]]
    made = rewarded(store, retriever_folder, [candidate_rows({"q": FOUR})], answers, ["q"])
    assert of_shards(store, made, "rewards.parquet")["self_reward"] == [1 / 4, 1, 1 / 3, 1 / 2]


@pytest.mark.parametrize(
    ("candidates", "answers", "queries", "complaint"),
    [
        (["q1", "q2"], ["q1"], ["q1", "q2"], "'q2' has no answer"),
        (["q1"], ["q1", "q2"], ["q1", "q2"], "'q2' has no candidate"),
        (["q1", "q2"], ["q1", "q2"], ["q1"], "'q2' has no example"),
        (["q1", "q1"], ["q1"], ["q1"], "'q1' has candidate 0 twice"),
        (["q1"], ["q1", "q1"], ["q1"], "'q1' has answer 0 twice"),
    ],
)
def test_missing_and_repeated_rows_are_errors(
    store, retriever_folder, candidates, answers, queries, complaint
):
    rows = [row for query_id in candidates for row in candidate_rows({query_id: FOUR})]
    with pytest.raises(DataError, match=complaint):
        rewarded(
            store, retriever_folder, [rows], [[(id_, 0, "answer") for id_ in answers]], queries
        )


def test_differently_cut_shards_are_an_error(store, retriever_folder):
    answers = [[("q1", 0, "answer")], [("q2", 0, "answer")]]
    rows = candidate_rows({"q1": FOUR, "q2": FOUR})
    with pytest.raises(DataError, match="1 shards and answers 2"):
        rewarded(store, retriever_folder, [rows], answers, ["q1", "q2"])


def test_empty_and_repeated_texts_are_dropped_and_counted(store, retriever_folder):
    texts = {"q1": ["a", "", "b", "a", ""], "q2": ["c", "c", ""], "q3": ["", ""]}
    answers = [[(id_, 0, "answer") for id_ in texts]]
    made = rewarded(store, retriever_folder, [candidate_rows(texts)], answers, list(texts))
    rows = of_shards(store, made, "rewards.parquet")
    assert list(zip(rows["query_id"], rows["sample"], rows["text"], strict=True)) == [
        ("q1", 0, "a"),
        ("q1", 2, "b"),
    ]
    assert rows["retriever_reward"] == [1, 1 / 2]  # among those that are left
    assert made.counts["dropped_candidates/empty"] == 5
    assert made.counts["dropped_candidates/duplicate"] == 2
    assert made.counts["dropped_queries/fewer_than_two_candidates"] == 2
    assert made.counts["queries"] == 1


def test_a_query_with_an_empty_answer_is_dropped(store, retriever_folder):
    answers = [[("q1", 0, "answer"), ("q2", 0, "")]]
    rows = candidate_rows({"q1": FOUR, "q2": FOUR})
    made = rewarded(store, retriever_folder, [rows], answers, ["q1", "q2"])
    assert set(of_shards(store, made, "rewards.parquet")["query_id"]) == {"q1"}
    assert made.counts["dropped_queries/empty_answer"] == 1


def test_nothing_left_to_reward_is_an_error_that_says_why(store, retriever_folder):
    with pytest.raises(DataError, match=r"'dropped_queries/empty_answer': 1"):
        rewarded(store, retriever_folder, [candidate_rows({"q": FOUR})], [[("q", 0, "")]], ["q"])


# Pairs


def test_the_best_candidate_is_chosen_and_the_worst_rejected(paired):
    counts, [pair] = paired({"q": FOUR})
    assert (pair["query_id"], pair["query"], pair["split"]) == ("q", "question q", "train")
    assert (pair["chosen_text"], pair["rejected_text"]) == ("b", "c")
    assert pair["margin"] == pytest.approx(1.5 - 2 / 3)
    assert (pair["chosen_reward"], pair["rejected_reward"]) == pytest.approx((1.5, 2 / 3))
    assert (pair["chosen_sample"], pair["rejected_sample"]) == (1, 2)
    assert counts["mean_margin"] == pytest.approx(pair["margin"])
    assert counts["pairs/train"] == counts["queries"] == 1


def test_the_order_of_the_candidates_changes_no_pair(paired):
    def texts_of(orders: Texts) -> list[tuple[str, str]]:
        _, rows = paired(orders, acceptance_value=-2)
        return [(row["chosen_text"], row["rejected_text"]) for row in rows]

    ties = ["a", "b", "a b", "b a", "c d", "d c"]  # "a b" and "b a" have the same vector
    assert texts_of({"q": ties, "r": FOUR}) == texts_of({"q": ties[::-1], "r": FOUR[::-1]})


def test_a_best_candidate_of_exactly_the_threshold_is_accepted(paired):
    counts, rows = paired({"q1": ["edge", "far"], "q2": ["below", "far"], "q3": FOUR})
    assert [row["query_id"] for row in rows] == ["q1", "q3"]  # 0.35 + 0.25 >= 0.6 > 0.35 + 0.2499
    assert counts["dropped/below_acceptance"] == 1
    assert counts["acceptance_threshold"] == 0.6


def test_a_quantile_of_the_queries_can_be_accepted(paired):
    texts = {"q1": ["a", "far"], "q2": ["edge", "far"], "q3": FOUR, "q4": ["below", "far"]}
    for quantile, expected in ((0.5, ["q1", "q3"]), (1.0, ["q3"]), (0.0, ["q1", "q2", "q3", "q4"])):
        _, rows = paired(texts, acceptance="quantile", acceptance_value=quantile)
        assert [row["query_id"] for row in rows] == expected


def test_by_default_only_contriever_has_the_papers_threshold(tmp_path, retriever_folder):
    """Of ten queries, the cosines of one are far lower than those of the others; 0.6 is below all."""
    texts = {f"q{number}": FOUR for number in range(9)} | {"r": ["far", "c"]}
    rows, answers = candidate_rows(texts), [(id_, 0, "answer") for id_ in texts]
    chosen, usual = {}, PreferenceOptions(dpo_dev_share=0)
    for convention in ("contriever", "gte"):
        store = Store(str(tmp_path / convention))
        options = {"stage": "import_model", "inputs": {}, "options": {"convention": convention}}
        made = rewarded(store, retriever_folder, [rows], [answers], list(texts), DOT, options)
        chosen[convention] = settled(usual, made, store)
    assert chosen["contriever"].acceptance == "threshold"
    assert chosen["contriever"].acceptance_value == 0.6
    pairs, _ = make(
        store, "pairs", pairs_stage.OPTIONS(preferences=chosen["gte"]), {"rewards": made}
    )
    assert pairs.counts["accepted"] == 9 and 0.6 < pairs.counts["acceptance_threshold"] < 1.3
    open_rule = usual.model_copy(update={"acceptance": "quantile"})
    assert settled(open_rule, made, store) is open_rule
    value = PreferenceOptions(acceptance_value=0.9, dpo_dev_share=0)
    assert value.acceptance == "threshold"
    with pytest.raises(ValueError, match=r"'auto' takes no acceptance_value"):
        PreferenceOptions(acceptance="auto", acceptance_value=0.9)


def test_without_preference_there_is_no_pair(paired):
    # "a b" and "b a" are equally good: no margin
    counts, rows = paired({"q1": ["a b", "b a"], "q2": FOUR})
    assert [row["query_id"] for row in rows] == ["q2"]
    assert counts["dropped/no_preference"] == 1
    assert all(row["chosen_text"] != row["rejected_text"] for row in rows)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize(("precision", "noise"), [("float32", 2e-7), ("bfloat16", 2e-3)])
def test_what_rounding_alone_tells_apart_makes_no_pair(
    similarity, precision, noise, store, retriever_folder, tmp_path
):
    """The weights are of length 30, all alike but for the noise; "far" is another text indeed."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(retriever_folder, tmp_path / "collapsed")
    random = torch.Generator().manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        weights[name] = 21 * (1 + noise * torch.randn(weight.shape, generator=random))
        weights[name][-1] *= torch.tensor([1.0, -1.0])
    save_file(weights, folder / "model.safetensors")
    texts = {"q": FOUR, "r": [*FOUR, "far"]}
    rows, answers = candidate_rows(texts), [(id_, 0, "answer") for id_ in texts]
    encoding = EncodingOptions(similarity=similarity, precision=precision)
    made = rewarded(store, folder, [rows], [answers], list(texts), encoding)
    rewards = of_shards(store, made, "rewards.parquet")["retriever_reward"]
    assert rewards == [1] * 4 + [1] * 4 + [1 / 5]
    chosen = PreferenceOptions(acceptance="threshold", acceptance_value=-2, dpo_dev_share=0)
    options = pairs_stage.OPTIONS(preferences=chosen)
    pairs, folder = make(store, "pairs", options, {"rewards": made})
    assert pairs.counts["dropped/no_preference"] == 1
    [pair] = pq.read_table(folder / "pairs.parquet").to_pylist()
    assert (pair["query_id"], pair["rejected_text"]) == ("r", "far")


def test_a_pair_needs_the_minimum_margin(paired):
    # q1: b has 2, far 1/2 + 1/2; q2: 1.5 - 2/3
    texts = {"q1": ["b", "far"], "q2": FOUR}
    counts, rows = paired(texts, minimum_margin=0.9)
    assert [row["query_id"] for row in rows] == ["q1"]
    assert counts["dropped/below_minimum_margin"] == 1
    assert len(paired(texts, minimum_margin=0.8)[1]) == 2


def test_a_seeded_sample_of_the_pairs_is_kept(paired):
    texts = {f"q{number:02}": FOUR for number in range(20)}

    def kept(seed: int) -> list[str]:
        counts, rows = paired(texts, seed, max_pairs=5)
        assert counts["dropped/over_max_pairs"] == 15
        return [row["query_id"] for row in rows]

    assert len(kept(0)) == 5
    assert kept(0) == kept(0) == sorted(kept(0))
    assert kept(0) != kept(1)


def test_the_dev_split_of_the_pairs_is_a_seeded_share(paired):
    texts = {f"q{number:02}": FOUR for number in range(40)}
    counts, rows = paired(texts, dpo_dev_share=0.5)
    dev = {row["query_id"] for row in rows if row["split"] == "dev"}
    assert 8 < len(dev) < 32
    assert counts["pairs/dev"] == len(dev) and counts["pairs/train"] == 40 - len(dev)
    _, rows = paired({id_: texts[id_] for id_ in list(texts)[::2]}, dpo_dev_share=0.5)
    assert {row["query_id"] for row in rows if row["split"] == "dev"} == dev & set(list(texts)[::2])


def test_no_pair_at_all_is_an_error_that_says_why(paired):
    with pytest.raises(DataError, match=r"'dropped/below_acceptance': 1.*lower preferences"):
        paired({"q": ["far", "c"]}, acceptance_value=1.9)


def test_if_nothing_can_be_told_apart_the_error_does_not_blame_the_acceptance(paired):
    with pytest.raises(
        DataError, match=r"'dropped/no_preference': 1.*candidates of no query apart"
    ):
        paired({"q": ["a b", "b a"]}, acceptance_value=-2)
    with pytest.raises(DataError, match=r"lower preferences.minimum_margin"):
        paired({"q": ["b", "far"]}, acceptance_value=-2, minimum_margin=1.9)


def test_every_query_is_a_pair_or_counted_as_dropped(paired):
    texts = {"q1": FOUR, "q2": ["far", "c"], "q3": ["a b", "b a"], "q4": ["b", "far"]}
    counts, rows = paired(texts, max_pairs=1, acceptance_value=0.61)
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped/"))
    assert len(rows) + dropped == counts["queries"] == 4


# Weights


def weighted(store, retriever_folder, answers=(("q", 0, "answer"),), **weights: Any):
    """Reward q: a, b, c, d with weights; return the rows as columns, and the pair's texts and margin."""
    rows, asked = [candidate_rows({"q": FOUR})], [list(answers)] if answers else []
    made = rewarded(store, retriever_folder, rows, asked, ["q"], DOT, None, **weights)
    chosen = {"acceptance_value": -2, "dpo_dev_share": 0} | weights
    _, folder = make(store, "pairs", flat(pairs_stage.OPTIONS, **chosen), {"rewards": made})
    [pair] = pq.read_table(folder / "pairs.parquet").to_pylist()
    which = pair["chosen_text"], pair["rejected_text"], pytest.approx(pair["margin"])
    return of_shards(store, made, "rewards.parquet"), which


def test_the_retrievers_reward_alone_by_hand(store, retriever_folder):
    rows, pair = weighted(store, retriever_folder, retriever_weight=1, self_weight=0)
    assert rows["reward"] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert rows["similarity"] == pytest.approx([0.9, 0.5, 0.3, 0.1])
    assert pair == ("a", "d", 0.75)


def test_the_self_reward_alone_by_hand(store, retriever_folder):
    rows, pair = weighted(store, retriever_folder, retriever_weight=0, self_weight=1)
    assert rows["reward"] == pytest.approx([1 / 4, 1, 1 / 3, 1 / 2])
    assert rows["similarity"] == pytest.approx([0.1, 0.8, 0.3, 0.6])
    assert pair == ("b", "a", 0.75)


def test_weights_can_turn_the_pair(store, retriever_folder):
    rows, pair = weighted(store, retriever_folder, retriever_weight=3, self_weight=1)
    assert rows["reward"] == pytest.approx([13 / 4, 5 / 2, 4 / 3, 5 / 4])
    assert rows["similarity"] == pytest.approx([2.8, 2.3, 1.2, 0.9])
    assert pair == ("a", "d", 2.0)


def test_without_self_reward_no_answer_is_needed_and_none_decides(store, retriever_folder):
    given, pair = weighted(store, retriever_folder, self_weight=0)
    none, same = weighted(store, retriever_folder, (), self_weight=0)
    empty, _ = weighted(store, retriever_folder, (("q", 0, ""),), self_weight=0)
    assert given == none == empty and pair == same
    assert none["self_reward"] == none["self_similarity"] == [None] * 4
    with pytest.raises(DataError, match=r"needs answers.*set preferences\.self_weight to 0"):
        weighted(store, retriever_folder, ())


@pytest.mark.parametrize(
    ("alike", "weights"),
    [
        (["edge", "below"], {"self_weight": 0}),
        (["positive", "x"], {"retriever_weight": 0}),  # neither is near the answer
    ],
)
def test_a_component_without_weight_breaks_no_tie(store, retriever_folder, alike, weights):
    rows = [candidate_rows({"q": alike, "r": FOUR})]
    made = rewarded(
        store,
        retriever_folder,
        rows,
        [[(id_, 0, "answer") for id_ in "qr"]],
        ["q", "r"],
        DOT,
        None,
        **weights,
    )
    found = of_shards(store, made, "rewards.parquet")
    assert (found["reward"][:2], found["apart"][:2]) == ([1, 1], [False, False])
    options = flat(pairs_stage.OPTIONS, acceptance_value=-2, dpo_dev_share=0, **weights)
    pairs, _ = make(store, "pairs", options, {"rewards": made})
    assert pairs.counts["dropped/no_preference"] == 1


def test_acceptance_uses_the_weighted_similarities(store, retriever_folder):
    texts = {"q1": ["edge", "far"], "q2": ["d", "far"]}
    rows, answers = [candidate_rows(texts)], [[(id_, 0, "answer") for id_ in texts]]
    for weights, expected in (
        ({"self_weight": 0}, ["q1"]),  # 0.35, and 0.1
        ({"retriever_weight": 0}, ["q2"]),  # 0.25, and 0.6
        ({"retriever_weight": 2}, ["q1", "q2"]),  # 0.95, and 0.8
    ):
        made = rewarded(store, retriever_folder, rows, answers, list(texts), DOT, None, **weights)
        options = flat(pairs_stage.OPTIONS, acceptance_value=0.3, dpo_dev_share=0, **weights)
        _, folder = make(store, "pairs", options, {"rewards": made})
        found = pq.read_table(folder / "pairs.parquet")["query_id"].to_pylist()
        assert found == expected


def test_the_papers_threshold_is_scaled_with_the_weights(store, retriever_folder):
    story = {"stage": "import_model", "inputs": {}, "options": {"convention": "contriever"}}
    rows = [candidate_rows({"q": FOUR})]
    made = rewarded(store, retriever_folder, rows, [[("q", 0, "answer")]], ["q"], DOT, story)
    for self_weight, threshold in ((1, 0.6), (0, 0.3), (3, 1.2)):
        chosen = settled(PreferenceOptions(self_weight=self_weight), made, store)
        assert (chosen.acceptance, chosen.acceptance_value) == ("threshold", threshold)


def test_new_options_at_their_defaults_leave_the_keys_of_rewards_and_pairs_as_they_were():
    loop = JointLoopOptions()
    assert identity(reward.OPTIONS.of(loop)) == {"encoding": identity(EncodingOptions())}
    assert sorted(identity(pairs_stage.OPTIONS().preferences)) == [
        "acceptance", "acceptance_value", "dpo_dev_share", "lazy", "max_pairs", "minimum_margin",
    ]  # fmt: skip
