"""Rewards by retrieval: ranks in the whole corpus equal those of a full sort, ties and all."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_world import make, of_shards, put, put_expansions, save_static_retriever, table
from flat_options import flat
from safetensors.torch import load_file, save_file
from store_keys import full

from expandr_core.encoders.encode import Encoder, encode_expanded
from expandr_core.errors import DataError
from expandr_core.options.retriever import EncodingOptions, FusionOptions, IndexOptions
from expandr_core.retrieval.counting import count_above
from expandr_core.retrieval.index import index_in_memory
from expandr_core.stages import audit_pairs, encode, example_passages, pairs, reward
from expandr_core.store.store import Store

ENCODING, VECTOR = EncodingOptions(max_tokens=16), FusionOptions()
WORDS = [f"w{number}" for number in range(30)]
KINDS = ("similarity", "corpus_rank", "ndcg_delta")


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_a_full_sort_whatever_the_blocks(seed):
    """Small integers tie often; of several limits of a query some are missing."""
    random = np.random.default_rng(seed)
    passages = random.integers(-2, 3, (101, 5)).astype(np.float32)
    queries = random.integers(-2, 3, (17, 5)).astype(np.float32)
    chosen = random.integers(0, len(passages), (len(queries), 3))
    products = (queries @ passages.T).astype(np.float64)
    limits = np.take_along_axis(products, chosen, axis=1)
    limits[::2, 2] = np.nan
    ignored = np.stack([np.repeat(np.arange(17), 3), chosen.ravel()], axis=1)
    left = products.copy()
    left[ignored[:, 0], ignored[:, 1]] = -np.inf
    ids = pa.array([str(number) for number in range(len(passages))])
    for memory in (2.0, 1e-6, 1e-9):  # all at once, some, and one passage and query at once
        index = index_in_memory(ids, passages)
        counts = count_above(queries, limits, ignored, index, memory)
        assert (counts == (left[:, None] > limits[:, :, None]).sum(axis=2)).all()


def test_what_single_precision_cannot_tell_from_the_limit_is_computed_again():
    passages = np.array([[1, 1e-8], [1, -1e-8], [1, 0]], np.float32)
    query, index = (
        np.array([[1, 1]], np.float32),
        index_in_memory(pa.array(["a", "b", "c"]), passages),
    )
    nothing = np.empty((0, 2), np.int64)
    assert count_above(query, np.array([[1.0]]), nothing, index, 1.0).tolist() == [[1]]


def test_counts_are_right_where_the_squares_of_a_length_underflow():
    random = np.random.default_rng(0)
    passages = 1e-24 * (1 + 1e-7 * random.normal(size=(500, 32)))
    query = random.normal(size=(1, 32))
    query = (query - query.mean()).astype(np.float32)
    index = index_in_memory(pa.array(map(str, range(500))), passages.astype(np.float32))
    products = index.products(query, np.zeros(500, np.int64), np.arange(500))
    nothing = np.empty((0, 2), np.int64)
    counts = count_above(query, np.sort(products)[None], nothing, index, 1.0)
    assert counts[0].tolist() == [(products > limit).sum() for limit in np.sort(products)]


class World:
    """A corpus, queries and candidates of random words; some positives are not in the corpus."""

    def __init__(self, folder: Path, seed: int = 0):
        self.store, random = Store(str(folder / "store")), np.random.default_rng(seed)

        def text(words: int) -> str:
            return " ".join(random.choice(WORDS, words))

        self.corpus = {f"p{number:03}": text(4) for number in range(120)}
        self.corpus["p003"] = self.corpus["p000"]  # a text that is there twice
        self.corpus["p010"] = " ".join(reversed(self.corpus["p011"].split()))  # about its vector
        self.queries = {f"q{number}": text(2) for number in range(6)}
        self.positives = {
            id_: ["p000", "p011", "absent"][number % 3 :] for number, id_ in enumerate(self.queries)
        }
        self.texts = {id_: [text(5) for _ in range(4)] for id_ in self.queries}
        self.texts["q1"][0] = self.corpus["p011"]  # its positive
        self.shards = [["q0", "q1"], ["q2", "q3"], ["q4", "q5"]]
        self.retriever = save_static_retriever(folder / "retriever", WORDS)
        self.inputs = {
            "candidates": self.expansions("candidates", lambda id_: self.texts[id_]),
            "answers": self.expansions("answers", lambda id_: [text(3)]),
            "examples": self.examples(),
            "retriever": self.store.commit(
                full("retriever-1"), shutil.copytree(self.retriever, self.store.scratch / "model"),
                [], {"counts": {}},
            ),
        }  # fmt: skip
        rows = [(id_, "", text) for id_, text in self.corpus.items()]
        tables = {"c.parquet": table(["passage_id", "title", "text"], rows)}
        self.passages = put(self.store, "corpus", tables).at("c.parquet")

    def positive(self, id_: str) -> str:
        return self.corpus.get(id_, "w1 w2 w29")

    def expansions(self, key: str, texts_of):
        rows = [
            [(id_, n, text) for id_ in shard for n, text in enumerate(texts_of(id_))]
            for shard in self.shards
        ]
        return put_expansions(self.store, key, rows)

    def examples(self):
        rows = [
            (id_, self.queries[id_], positive, self.positive(positive))
            for id_, own in self.positives.items()
            for positive in own
        ]
        # a positive whose id the corpus does not know, but its text
        rows += [("q5", self.queries["q5"], "another id", self.corpus["p020"])]
        self.positives["q5"].append("p020")
        columns = ["query_id", "query", "positive_id", "positive"]
        return put(self.store, "examples", {"e.parquet": table(columns, rows)}).at("e.parquet")

    def rewarded(self, kind: str, vector_type: str = "float16", **changes):
        """Run the stage; return its artifact, and its rows as columns."""
        made = ["retriever", "candidates", "answers", "examples"]
        inputs = {role: self.inputs[role] for role in made}
        if kind in ("corpus_rank", "ndcg_delta"):
            index = IndexOptions(vector_type=vector_type)
            encoding = encode.OPTIONS(encoding=changes.get("encoding", ENCODING), index=index)
            corpus = {"corpus": self.passages, "retriever": inputs["retriever"]}
            inputs["embeddings"] = make(self.store, "encode", encoding, corpus)[0]
        k = {"k": 3} if kind == "ndcg_delta" else {}
        given: dict[str, Any] = {"encoding": ENCODING, "reward": kind} | k | changes
        options = reward.OPTIONS(**given)
        artifact, _ = make(self.store, "reward", options, inputs)
        return artifact, of_shards(self.store, artifact, "rewards.parquet")

    def sorted_ranks(self, query_id: str, text: str, fusion: FusionOptions = VECTOR) -> list[int]:
        """Rank the positives by sorting the whole corpus; the query alone if the text is empty."""
        encoder = Encoder(self.retriever, "cpu", ENCODING)
        own = [[text]] if text else [[]]
        [vector] = encode_expanded(encoder, [self.queries[query_id]], own, fusion).astype(
            np.float64
        )
        texts = [self.positive(id_) for id_ in self.positives[query_id]]
        stored = encoder.encode_passages(list(self.corpus.values())).astype(np.float16)
        scores = dict(zip(self.corpus, stored.astype(np.float64) @ vector, strict=True))
        order = sorted(scores, key=lambda id_: -scores[id_])
        others = [id_ for id_ in order if self.corpus[id_] not in texts]
        ranks = []
        for id_, positive in zip(self.positives[query_id], texts, strict=True):
            score = scores.get(id_, encoder.encode_passages([positive])[0] @ vector)
            limit = score + encoder.rounding * np.linalg.norm(vector)
            ranks.append(sum(scores[other] > limit for other in others))
        return [1 + place + above for place, above in enumerate(sorted(ranks))]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("seed", range(3))
def test_ranks_equal_those_of_a_full_sort_of_the_corpus(tmp_path, seed):
    world = World(tmp_path, seed)
    made, rows = world.rewarded("corpus_rank")
    _, gains = world.rewarded("ndcg_delta")
    for query_id, text, reward_, alone, gain in zip(
        rows["query_id"], rows["text"], rows["retriever_reward"], rows["query_retrieval"],
        gains["retriever_reward"], strict=True,
    ):  # fmt: skip
        expanded, query = world.sorted_ranks(query_id, text), world.sorted_ranks(query_id, "")
        assert (reward_, alone) == (1 / expanded[0], 1 / query[0])
        both = [
            sum(1 / np.log2(1 + rank) for rank in ranks if rank <= 3)
            / sum(1 / np.log2(1 + rank) for rank in range(1, 1 + min(3, len(ranks))))
            for ranks in (expanded, query)
        ]
        assert gain == pytest.approx(both[0] - both[1])
    assert made.counts["positives"] == 3 + 2 + 1 + 3 + 2 + 2
    assert made.counts["positives/not in the corpus"] == 6


@pytest.mark.parametrize("method", ["hyde", "concatenate"])
def test_queries_are_fused_as_in_search(world, method):
    fusion = FusionOptions(method=method)
    _, rows = world.rewarded("corpus_rank", fusion=fusion)
    for query_id, text, reward_ in zip(
        rows["query_id"], rows["text"], rows["retriever_reward"], strict=True
    ):
        assert reward_ == 1 / world.sorted_ranks(query_id, text, fusion)[0]


def test_an_expansion_equal_to_its_positive_has_rank_one_where_the_positive_is_its_own_nearest(
    world,
):
    _, rows = world.rewarded("corpus_rank", fusion=FusionOptions(expansion_weight=1))
    place = rows["text"].index(world.corpus["p011"])
    assert rows["query_id"][place] == "q1" and rows["retriever_reward"][place] == 1


def test_the_similarity_is_the_cosine_gained_by_the_expanded_query(world):
    made, rows = world.rewarded("similarity")
    encoder = Encoder(world.retriever, "cpu", ENCODING)
    for query_id, text, gain in zip(
        rows["query_id"], rows["text"], rows["retriever_reward"], strict=True
    ):
        positives = encoder.encode_passages([world.positive(p) for p in world.positives[query_id]])
        cosines = [
            (encode_expanded(encoder, [world.queries[query_id]], [own], VECTOR) @ positives.T).max()
            for own in ([text], [])
        ]
        assert gain == pytest.approx(cosines[0] - cosines[1], abs=1e-6)
    assert any(gain < 0 for gain in rows["retriever_reward"])
    assert made.counts["mean_retrieval"] == pytest.approx(np.mean(rows["retrieval"]))
    assert made.counts["mean_query_retrieval"] == pytest.approx(np.mean(rows["query_retrieval"]))
    assert made.counts["mean_beats_query"] == pytest.approx(np.mean(rows["beats_query"]))


@pytest.mark.parametrize("kind", KINDS)
def test_reward_and_similarity_are_weighted_sums_and_the_self_reward_is_as_ever(world, kind):
    _, paper = world.rewarded("candidate_rank")
    _, rows = world.rewarded(kind, retriever_weight=2, self_weight=0.5)
    assert rows["self_reward"] == paper["self_reward"]
    for name in ("reward", "similarity"):
        both = zip(rows[f"retriever_{name}"], rows[f"self_{name}"], strict=True)
        assert rows[name] == pytest.approx([2 * one + 0.5 * other for one, other in both])


def test_ranks_do_not_change_with_the_scale_of_the_retriever(world, tmp_path):
    dot = ENCODING.model_copy(update={"similarity": "dot"})
    ranks = []
    for scale in (1.0, 24.0):
        weights = world.retriever / "model.safetensors"
        folder = shutil.copytree(world.retriever, tmp_path / f"by {scale}")
        scaled = {name: weight * scale for name, weight in load_file(weights).items()}
        save_file(scaled, folder / "model.safetensors")
        other = World.__new__(World)
        other.__dict__ = world.__dict__ | {"inputs": dict(world.inputs)}
        key = full(f"retriever-{scale}")
        other.inputs["retriever"] = world.store.commit(key, folder, [], {"counts": {}})
        _, rows = other.rewarded("corpus_rank", "float32", encoding=dot)
        ranks.append(rows["retriever_reward"])
    assert ranks[0] == ranks[1]
    assert len(set(ranks[0])) > 5


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_shards_and_small_memory_change_no_byte(world, tmp_path, kind):
    made, _ = world.rewarded(kind)
    alone = World(tmp_path)
    again, _ = alone.rewarded(kind, search_memory_gb=1e-7)
    assert again.digest == made.digest and again.key == made.key
    for part in alone.store.shards(again)[1:]:  # as if killed after the first shard
        shutil.rmtree(Path(alone.store.root, "artifacts", part.key))
    shutil.rmtree(Path(alone.store.root, "artifacts", again.key))
    assert alone.rewarded(kind)[0].digest == made.digest


def test_a_pair_is_kept_only_if_its_chosen_text_beats_the_query(world):
    made, rows = world.rewarded("similarity", self_weight=0)
    best: dict[str, float] = {}
    for query_id, gain in zip(rows["query_id"], rows["retriever_reward"], strict=True):
        best[query_id] = max(gain, best.get(query_id, -9))
    usual = {"dpo_dev_share": 0, "acceptance_value": -9, "reward": "similarity", "self_weight": 0}
    for beats, expected in ((False, set(best)), (True, {id_ for id_ in best if best[id_] > 1e-5})):
        options = flat(pairs.OPTIONS, beats_query=beats, **usual)
        chosen, folder = make(world.store, "pairs", options, {"rewards": made})
        found = pq.read_table(folder / "pairs.parquet").to_pylist()
        assert {pair["query_id"] for pair in found} == expected
        assert chosen.counts["accepted"] == len(expected)
        for pair in found:
            gained = pair["chosen_retrieval"] - pair["query_retrieval"]
            assert gained == pytest.approx(pair["chosen_reward"]) == best[pair["query_id"]]
    assert chosen.counts.get("dropped/does_not_beat_the_query", 0) == len(best) - len(expected)


def test_ranks_among_candidates_can_be_asked_to_beat_the_query_too(world):
    plain, rows = world.rewarded("candidate_rank")
    made, measured = world.rewarded("candidate_rank", beats_query=True)
    assert {name: measured[name] for name in rows} == rows
    _, similarity = world.rewarded("similarity")
    assert measured["beats_query"] == similarity["beats_query"]
    assert plain.key != made.key


def test_the_audit_shows_what_the_query_alone_and_the_candidates_retrieve(world):
    made, _ = world.rewarded("corpus_rank", self_weight=0)
    options = flat(pairs.OPTIONS, dpo_dev_share=0, acceptance_value=-9)
    chosen, _ = make(world.store, "pairs", options, {"rewards": made})
    inputs = {"pairs": chosen, "rewards": made}
    audited, folder = make(world.store, "audit_pairs", audit_pairs.OPTIONS(), inputs)
    page = (folder / "pair_audit.md").read_text()
    assert f"| query alone | {made.counts['mean_query_retrieval']:.3f} |" in page
    assert f"| candidates | {made.counts['mean_retrieval']:.3f} |" in page
    facts = json.loads((folder / "pair_audit.json").read_text())
    assert sum(facts["margins"]) == facts["pairs"] and facts["bin"] > 0
    assert facts["retrieval"]["chosen"] > facts["retrieval"]["rejected"]
    assert audited.counts["agreement"] == 0.5  # of one component alone


def test_without_a_collection_the_corpus_is_the_union_of_the_examples(tmp_path):
    store = Store(str(tmp_path / "store"))
    columns = ["positive_id", "positive", "negative_ids", "negatives"]
    rows = {
        "preference": [("a", "A", ["b", "c"], ["B", "C"]), ("b", "B", [], [])],
        "retriever": [("d", "D", ["a", "e"], ["A", "E"])],
    }
    inputs = {
        role: put(store, role, {"e.parquet": table(columns, own)}).at("e.parquet")
        for role, own in rows.items()
    }
    made, folder = make(store, "example_passages", example_passages.OPTIONS(), inputs)
    found = pq.read_table(folder / "corpus.parquet").to_pylist()
    assert [(row["passage_id"], row["text"]) for row in found] == [(x.lower(), x) for x in "ABCDE"]
    assert made.counts == {
        "preference/positives": 1, "preference/negatives": 2, "retriever/positives": 1,
        "retriever/negatives": 1, "passages": 5,
    }  # fmt: skip


def test_other_embeddings_than_the_encoder_s_are_refused(world, tmp_path):
    encoding = encode.OPTIONS(encoding=ENCODING)
    shutil.copytree(save_static_retriever(tmp_path / "r", WORDS, 4), world.store.scratch / "four")
    four = world.store.commit(full("four-1"), world.store.scratch / "four", [], {"counts": {}})
    corpus = {"corpus": world.passages, "retriever": four}
    inputs = world.inputs | {"embeddings": make(world.store, "encode", encoding, corpus)[0]}
    options = reward.OPTIONS(encoding=ENCODING, reward="corpus_rank", self_weight=3)
    with pytest.raises(DataError, match="the embeddings have 4 dimensions"):
        make(world.store, "reward", options, inputs)
