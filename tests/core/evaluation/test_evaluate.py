"""The stages evaluate and evaluate_bm25: streaming gives what a plain computation gives."""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from evaluation_world import (
    WORDS,
    columns,
    make,
    put,
    put_expansions,
    save_static_retriever,
    table,
)
from flat_options import flat
from store_keys import full

from expandr_core.encoders.encode import Encoder, unit
from expandr_core.errors import DataError
from expandr_core.evaluation import run_queries as evaluation
from expandr_core.evaluation.metrics import METRICS
from expandr_core.options.evaluation import EvaluationOptions
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.retrieval import expanded
from expandr_core.stages import bm25_index, encode, evaluate, evaluate_bm25
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

QUERY_IDS = [f"q{n:02}" for n in range(17)]
PASSAGE_IDS = [f"p{n:02}" for n in range(25)]


def phrases(count: int, seed: int) -> list[str]:
    """Two to four different words each; no two phrases with the same words."""
    random = np.random.default_rng(seed)
    found: dict[frozenset[str], str] = {}
    while len(found) < count:
        words = random.choice(WORDS, random.integers(2, 5), replace=False)
        found.setdefault(frozenset(words), " ".join(words))
    return list(found.values())


ENCODING = EncodingOptions(max_tokens=64)


class World:
    """A store with a collection, a retriever and the encoded corpus."""

    def __init__(self, folder):
        self.store = Store(str(folder / "store"))
        self.passages = dict(zip(PASSAGE_IDS, phrases(25, seed=1), strict=True))
        self.queries = dict(zip(QUERY_IDS, phrases(17, seed=2), strict=True))
        random = np.random.default_rng(3)
        self.qrels = [
            (query_id, str(passage_id), int(query_id != "q05"))
            for query_id in QUERY_IDS
            for passage_id in random.choice(PASSAGE_IDS, 2, replace=False)
        ]
        corpus = [(passage_id, "", text) for passage_id, text in self.passages.items()]
        queries = [
            (q, text, f"cluster {n % 3}") for n, (q, text) in enumerate(self.queries.items())
        ]
        tables = {
            "corpus.parquet": table(["passage_id", "title", "text"], corpus),
            "queries.parquet": table(["query_id", "query", "cluster"], queries),
            "qrels.parquet": table(["query_id", "passage_id", "relevance"], self.qrels),
        }
        self.data = put(self.store, "data-1", tables)
        model = save_static_retriever(folder / "retriever", WORDS)
        self.retriever = self.store.commit(full("retriever-1"), model, [], {"counts": {}})
        self.encoder = Encoder(self.store.local(self.retriever), "cpu", ENCODING)
        options = flat(encode.OPTIONS, encoding=ENCODING, vector_type="float32")
        inputs = {"retriever": self.retriever, "corpus": self.data.at("corpus.parquet")}
        self.embeddings, _ = make(self.store, "encode", options, inputs)

    def inputs(self, **more) -> dict[str, Any]:
        data = {name: self.data.at(f"{name}.parquet") for name in ("queries", "qrels")}
        return data | more

    def evaluate(self, expansion_weight: float, search_memory_gb: float = 450e-9, **more):
        """Evaluate; by default with memory for seven passages at once."""
        options = flat(
            evaluate.OPTIONS,
            encoding=ENCODING,
            expansion_weight=expansion_weight,
            depth=10,
            search_memory_gb=search_memory_gb,
        )
        inputs = self.inputs(retriever=self.retriever, embeddings=self.embeddings, **more)
        return make(self.store, "evaluate", options, inputs)

    def plain(self, vectors: np.ndarray) -> dict[str, list[str]]:
        """Return the ten nearest passages of each query."""
        scores = vectors @ self.encoder.encode_passages(list(self.passages.values())).T
        order = np.argsort(-scores, axis=1)[:, :10]
        return {
            query_id: [PASSAGE_IDS[place] for place in row]
            for query_id, row in zip(QUERY_IDS, order, strict=True)
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(autouse=True)
def few_queries_at_once(monkeypatch):
    monkeypatch.setattr(evaluation, "QUERIES_AT_ONCE", 4)
    monkeypatch.setattr(expanded, "ENCODED_AT_ONCE", 3)


def found(folder) -> dict[str, list[str]]:
    run = columns(folder / "run.parquet")
    ranked: dict[str, list[str]] = {}
    for query_id, passage_id, rank in zip(
        run["query_id"], run["passage_id"], run["rank"], strict=True
    ):
        ranked.setdefault(query_id, []).append(passage_id)
        assert rank == len(ranked[query_id])
    return ranked


def shards_of(rows: list[tuple[str, int, str]], count: int) -> list[list[tuple[str, int, str]]]:
    """Deal queries into shards."""
    return [[row for row in rows if int(row[0][1:]) % count == place] for place in range(count)]


def expansions(samples: int) -> list[tuple[str, int, str]]:
    """Seven words each, some repeated: no such text has a passage's vector, so nothing ties."""
    random = np.random.default_rng(4)
    return [
        (query_id, n, " ".join(random.choice(WORDS, 7)))
        for query_id in QUERY_IDS
        for n in range(samples)
    ]


def test_query_only_equals_a_plain_computation(world):
    artifact, folder = world.evaluate(0)
    expected = world.plain(world.encoder.encode_queries(list(world.queries.values())))
    assert found(folder) == expected

    relevant = {(query_id, passage_id) for query_id, passage_id, grade in world.qrels if grade}
    ranks = {
        query_id: [r for r, p in enumerate(ranking, 1) if (query_id, p) in relevant]
        for query_id, ranking in expected.items()
        if query_id != "q05"
    }
    ideal = 1 + 1 / np.log2(3)
    ndcg = {q: sum(1 / np.log2(rank + 1) for rank in found) / ideal for q, found in ranks.items()}
    per_query = columns(folder / "per_query.parquet")
    assert per_query["query_id"] == sorted(ndcg)
    assert per_query["cluster"] == [f"cluster {int(q[1:]) % 3}" for q in sorted(ndcg)]
    assert per_query["ndcg_at_10"] == pytest.approx([ndcg[q] for q in sorted(ndcg)])
    assert per_query["recall_at_100"] == pytest.approx([len(ranks[q]) / 2 for q in sorted(ndcg)])

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["queries"] == 16
    assert metrics["ndcg_at_10"] == pytest.approx(np.mean(list(ndcg.values())))
    for name in METRICS:
        assert metrics[name] == artifact.counts[name] == pytest.approx(np.mean(per_query[name]))
    assert artifact.counts["queries_without_positive"] == 1


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("weight", [1, 0.5, 0.25])
def test_expansions_are_joined_by_id_and_averaged_as_vectors(world, weight, samples):
    rows = expansions(samples)
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    artifact = put_expansions(
        world.store, f"expand-{weight}-{samples}", shards_of(shuffled, 5)[::-1]
    )
    _, folder = world.evaluate(weight, expansions=artifact)
    vectors = world.encoder.encode_passages([text for _, _, text in rows]).reshape(17, samples, -1)
    vectors = unit(vectors.mean(axis=1))
    queries = world.encoder.encode_queries(list(world.queries.values()))
    vectors = unit(weight * vectors + (1 - weight) * queries)
    assert found(folder) == world.plain(vectors)


def test_the_order_of_queries_shards_and_blocks_does_not_change_the_metrics(world):
    rows = expansions(1)
    one = put_expansions(world.store, "expand-one", [rows])
    many = put_expansions(world.store, "expand-many", shards_of(rows, 7))
    _, first = world.evaluate(0.5, expansions=one)
    _, second = world.evaluate(0.5, expansions=many, search_memory_gb=1)
    assert columns(first / "per_query.parquet") == columns(second / "per_query.parquet")
    assert found(first) == found(second)


def test_by_rrf_the_run_of_a_query_fuses_its_own_and_its_expansions_runs(world):
    """Two expansions, one of which may be empty; sums of reciprocal ranks worked out here."""
    rows = [(id_, n, "" if (id_, n) == ("q04", 1) else text) for id_, n, text in expansions(2)]
    artifact = put_expansions(world.store, "expand-rrf", shards_of(rows, 5))
    fusion = FusionOptions(method="rrf")
    options = flat(evaluate.OPTIONS, encoding=ENCODING, fusion=fusion, depth=10)
    inputs = world.inputs(retriever=world.retriever, embeddings=world.embeddings)
    _, folder = make(world.store, "evaluate", options, inputs | {"expansions": artifact})
    rankings = [
        world.plain(world.encoder.encode_queries(list(world.queries.values()))),
        *(
            world.plain(world.encoder.encode_passages([text for _, n, text in rows if n == sample]))
            for sample in (0, 1)
        ),
    ]
    for query_id, hits in found(folder).items():
        own = [each[query_id] for each in rankings[: 2 if query_id == "q04" else 3]]
        sums = {p: sum(1 / (61 + r.index(p)) for r in own if p in r) for r in own for p in r}
        expected = sorted(sums, key=lambda p: (np.float32(sums[p]), p), reverse=True)[:10]
        assert hits == expected


def test_without_any_written_expansion_the_query_is_searched_alone_and_counted(world):
    rows = [(query_id, n, "") for query_id in QUERY_IDS for n in range(2)]
    rows[0] = (QUERY_IDS[0], 0, WORDS[0])
    artifact = put_expansions(world.store, "expand-empty", shards_of(rows, 3))
    for weight in (1, 0.5):
        evaluated, folder = world.evaluate(weight, expansions=artifact)
        vectors = world.encoder.encode_queries(list(world.queries.values()))
        word = world.encoder.encode_passages([WORDS[0]])[0]
        vectors[0] = word if weight == 1 else unit((vectors[:1] + word) / 2)[0]
        assert found(folder) == world.plain(vectors)
        assert evaluated.counts["empty_expansions"] == 33
        assert evaluated.counts["queries_without_expansion"] == 16


def test_a_query_without_a_row_among_the_expansions_is_an_error_that_names_it(world):
    rows = [row for row in expansions(1) if row[0] != "q03"]
    artifact = put_expansions(world.store, "expand-missing", shards_of(rows, 3))
    with pytest.raises(DataError, match=r"1 of 17 queries have no expansion, such as 'q03'"):
        world.evaluate(0.5, expansions=artifact)


def test_expansions_of_other_queries_are_not_used(world):
    rows = expansions(1)
    other = [("q98", 0, "red"), ("q99", 0, "blue")]
    more = put_expansions(world.store, "expand-more", [[*rows[:5], *other], rows[5:], other])
    exact = put_expansions(world.store, "expand-exact", [rows])
    _, folder = world.evaluate(0.5, expansions=more)
    assert found(folder) == found(world.evaluate(0.5, expansions=exact)[1])


def test_a_query_in_two_shards_is_refused(world):
    rows = expansions(1)
    artifact = put_expansions(world.store, "expand-twice", [rows, rows[:6]])
    with pytest.raises(DataError, match="17 queries were searched 23 times"):
        world.evaluate(0.5, expansions=artifact)


@pytest.mark.parametrize("number", [2, 5])  # of five blocks
def test_a_run_that_cannot_be_written_is_an_error(tmp_path, monkeypatch, number):
    world = World(tmp_path)
    writer, blocks = evaluation.pq.ParquetWriter, itertools.count(1)
    write = writer.write_table

    def write_until(self, run):
        if next(blocks) == number:
            raise OSError("No space left on device")
        write(self, run)

    monkeypatch.setattr(writer, "write_table", write_until)
    with pytest.raises(OSError, match="No space left"):
        world.evaluate(0)
    assert next(blocks) > number


def test_the_weight_and_the_inputs_must_fit(world):
    with pytest.raises(DataError, match=r"expansion_weight 0\.5 needs expansions"):
        world.evaluate(0.5)
    artifact = put_expansions(world.store, "expand-unused", [expansions(1)])
    with pytest.raises(DataError, match=r"expansion_weight 0\.0 uses no expansions"):
        world.evaluate(0, expansions=artifact)


def test_vectors_of_a_retriever_of_another_size_are_refused(world, tmp_path):
    folder = save_static_retriever(tmp_path / "other", WORDS, dimensions=4)
    other = world.store.commit(full("retriever-other"), folder, [], {"counts": {}})
    options = flat(evaluate.OPTIONS, encoding=ENCODING, expansion_weight=0)
    inputs = world.inputs(retriever=other, embeddings=world.embeddings)
    with pytest.raises(DataError, match="encoded with 8 dimensions, the retriever has 4"):
        make(world.store, "evaluate", options, inputs)


def test_no_relevant_passage_at_all_is_refused(world):
    qrels = table(["query_id", "passage_id", "relevance"], [("q00", "p00", 0)])
    artifact = put(world.store, "qrels-none", {"qrels.parquet": qrels})
    with pytest.raises(DataError, match="no query has a relevant passage"):
        world.evaluate(0, qrels=artifact.at("qrels.parquet"))


def indexed(store: Store, corpus: Artifact) -> Artifact:
    return make(store, "bm25_index", bm25_index.OPTIONS(), {"corpus": corpus})[0]


def test_bm25_searches_with_the_query_s_and_the_expansions_words(world):
    rows = expansions(2)
    artifact = put_expansions(world.store, "expand-bm25", shards_of(rows, 5))
    inputs = world.inputs(index=indexed(world.store, world.data.at("corpus.parquet")))
    options = flat(evaluate_bm25.OPTIONS, depth=10)
    _, alone = make(world.store, "evaluate_bm25", options, inputs)
    _, expanded = make(world.store, "evaluate_bm25", options, inputs | {"expansions": artifact})

    by_words = {query_id: text.split() for query_id, text in world.queries.items()}
    for query_id, hits in found(alone).items():
        assert all(set(by_words[query_id]) & set(world.passages[hit].split()) for hit in hits)
    for query_id, _, text in rows:
        by_words[query_id] += text.split()
    joined = put(
        world.store,
        "queries-joined",
        {
            "queries.parquet": table(
                ["query_id", "query", "cluster"],
                [(query_id, " ".join(words), "") for query_id, words in by_words.items()],
            )
        },
    )
    _, rewritten = make(
        world.store, "evaluate_bm25", options, inputs | {"queries": joined.at("queries.parquet")}
    )
    assert found(expanded) == found(rewritten)
    assert found(expanded) != found(alone)


def test_bm25_repeats_the_query_before_an_expansion_as_query2doc_does(world):
    """As if each query were written five times, but only where there is an expansion."""
    rows = [(id_, n, text if id_ != "q03" else "") for id_, n, text in expansions(2)]
    artifact = put_expansions(world.store, "expand-repeats", shards_of(rows, 5))
    inputs = world.inputs(index=indexed(world.store, world.data.at("corpus.parquet")))
    texts = {id_: [text] * (1 if id_ == "q03" else 5) for id_, text in world.queries.items()}
    for query_id, _, text in rows:
        texts[query_id].append(text)
    rewritten = [(query_id, " ".join(own), "") for query_id, own in texts.items()]
    columns_ = ["query_id", "query", "cluster"]
    joined = put(
        world.store, "queries-repeated", {"queries.parquet": table(columns_, rewritten)}
    ).at("queries.parquet")
    usual, five = (flat(evaluate_bm25.OPTIONS, depth=10, query_repeats=n) for n in (1, 5))
    expanded = inputs | {"expansions": artifact}
    runs = [
        found(make(world.store, "evaluate_bm25", options, given)[1])
        for options, given in (
            (five, expanded),
            (usual, inputs | {"queries": joined}),
            (usual, expanded),
        )
    ]
    assert runs[0] == runs[1] != runs[2]


def test_rm3_searches_with_terms_of_the_first_hits(world):
    corpus = world.data.at("corpus.parquet")
    inputs = world.inputs(index=indexed(world.store, corpus))
    plain, rm3 = (flat(evaluate_bm25.OPTIONS, depth=100, rm3=each) for each in (False, True))
    alone = found(make(world.store, "evaluate_bm25", plain, inputs)[1])
    fed_back = found(make(world.store, "evaluate_bm25", rm3, inputs | {"corpus": corpus})[1])
    assert alone.keys() == fed_back.keys()
    assert all(set(hits) <= set(fed_back[query_id]) for query_id, hits in alone.items())
    assert any(len(hits) < len(fed_back[query_id]) for query_id, hits in alone.items())


def test_a_report_s_bm25_repeats_the_query_only_with_expansions():
    options = EvaluationOptions(bm25_query_repeats=5)
    of = evaluate_bm25.OPTIONS.of
    assert of(options, "ignore", expanded=True).query_repeats == 5
    assert of(options, "ignore", expanded=False) == of(EvaluationOptions(), "ignore", True)


def test_passages_left_out_for_the_query_s_id_are_counted_and_can_be_kept(tmp_path):
    store = Store(str(tmp_path / "store"))
    corpus = [("1", "", "red bird"), ("2", "", "blue song"), ("x", "", "red stone")]
    data = put(store, "data-1", {
        "corpus.parquet": table(["passage_id", "title", "text"], corpus),
        "queries.parquet": table(["query_id", "query", "cluster"],
                                 [("1", "red bird", "1"), ("2", "red", "2"), ("3", "blue", "3")]),
        "qrels.parquet": table(["query_id", "passage_id", "relevance"],
                               [("1", "1", 1), ("2", "x", 1), ("3", "2", 1)]),
    })  # fmt: skip
    inputs = {name: data.at(f"{name}.parquet") for name in ("queries", "qrels")}
    inputs |= {"index": indexed(store, data.at("corpus.parquet"))}
    made, _ = make(store, "evaluate_bm25", evaluate_bm25.OPTIONS(), inputs)
    assert (made.counts["identical_ids"], made.counts["identical_ids/relevant"]) == (2, 1)
    assert made.counts["ndcg_at_10"] == pytest.approx(2 / 3)
    assert evaluation.identical_ids_warning(made.counts) == (
        "the passage with the query's id is left out, as in beir, of the results of 2 queries, a "
        "relevant one of 1; if the ids coincide by chance, set evaluate.identical_ids to 'keep'"
    )
    options = flat(evaluate_bm25.OPTIONS, identical_ids="keep")
    kept, _ = make(store, "evaluate_bm25", options, inputs)
    assert kept.counts["ndcg_at_10"] == 1.0
    assert "identical_ids" not in kept.counts
