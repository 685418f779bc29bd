"""The stage encode: rows in the order of the corpus, whatever the blocks."""

import numpy as np
import pyarrow as pa
import pytest
from evaluation_world import WORDS, make, of_shards, put, save_static_retriever, table

from expandr_core.encoder import Encoder
from expandr_core.errors import DataError
from expandr_core.models import model_files
from expandr_core.options import EncodingOptions
from expandr_core.stage import count_shards, make_spec, run_part, run_stage
from expandr_core.stages import encode
from expandr_core.store import Store

CORPUS = ["passage_id", "title", "text"]


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def retriever(store, tmp_path):
    folder = save_static_retriever(tmp_path / "retriever", WORDS)
    assert model_files(folder)
    return store.commit("retriever-1", folder, [], {"counts": {}})


def encoded(store, retriever, rows: list[tuple], **options):
    corpus = put(store, f"corpus-{len(rows)}", {"corpus.parquet": table(CORPUS, rows)})
    chosen = encode.OPTIONS(encoding=EncodingOptions(**{"max_tokens": 64} | options))
    inputs = {"retriever": retriever, "corpus": corpus.at("corpus.parquet")}
    return make(store, "encode", chosen, inputs)[0]


def vectors_of(store, artifact) -> np.ndarray:
    shards = store.parts(artifact)
    return np.concatenate([np.load(store.local(shard) / "vectors.npy") for shard in shards])


def test_vectors_are_those_of_title_and_text_in_the_corpus_s_order(store, retriever, monkeypatch):
    monkeypatch.setattr(encode, "PASSAGES_PER_SHARD", 4)
    monkeypatch.setattr(encode, "_ENCODED_AT_ONCE", 3)
    random = np.random.default_rng(0)
    rows = [
        (f"p{n}", "red" if n % 2 else "", " ".join(random.choice(WORDS, random.integers(0, 9))))
        for n in range(11)
    ]
    artifact = encoded(store, retriever, rows)
    assert len(store.parts(artifact)) == 3
    encoder = Encoder(store.local(retriever), "cpu", EncodingOptions(max_tokens=64))
    expected = encoder.encode_passages([f"{title} {text}".strip() for _, title, text in rows])
    vectors = vectors_of(store, artifact)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert of_shards(store, artifact, "passages.parquet")["passage_id"] == [row[0] for row in rows]
    assert artifact.counts == {"passages": 11, "dimensions": 8}


def test_vectors_are_left_as_they_are_unless_normalised(store, retriever):
    artifact = encoded(store, retriever, [("a", "", "red"), ("b", "", "")], similarity="dot")
    lengths = np.linalg.norm(vectors_of(store, artifact), axis=1)
    assert lengths[0] > 1.1
    assert lengths[1] == 0


def test_documents_added_at_the_end_are_encoded_alone(store, retriever, monkeypatch):
    monkeypatch.setattr(encode, "PASSAGES_PER_SHARD", 4)
    rows = [(f"p{n}", "", WORDS[n % len(WORDS)]) for n in range(10)]
    before = store.parts(encoded(store, retriever, rows))
    after = store.parts(encoded(store, retriever, [*rows, ("new", "", "red")]))
    assert after[:2] == before[:2]
    assert after[2] != before[2]


def test_several_processes_share_the_shards_and_a_last_one_finds_them(
    store, retriever, monkeypatch
):
    monkeypatch.setattr(encode, "PASSAGES_PER_SHARD", 2)
    rows = [(f"p{n}", "", WORDS[n % len(WORDS)]) for n in range(9)]
    table_of = put(store, "corpus-9", {"corpus.parquet": table(CORPUS, rows)})
    inputs = {"retriever": retriever, "corpus": table_of.at("corpus.parquet")}
    spec = make_spec(
        "encode", encode.OPTIONS(encoding=EncodingOptions(max_tokens=64)), inputs, device="cpu"
    )
    assert count_shards(spec, store) == 5
    for i in range(2):
        run_part(spec, store, lambda *_: None, (i, 2))
        assert len(store.keys("encode_shard")) == (3, 5)[i]
        assert store.lookup(spec.key) is None
    shards = {part.key: part.digest for part in map(store.verify, store.keys("encode_shard"))}
    monkeypatch.setattr(encode, "_write_shard", None)  # nothing is left to encode
    whole = run_stage(spec, store, lambda *_: None)
    assert {part.key: part.digest for part in store.parts(whole)} == shards
    assert whole.counts["passages"] == 9


def test_an_empty_corpus_is_refused(store, retriever):
    empty = pa.schema([(name, pa.string()) for name in CORPUS]).empty_table()
    corpus = put(store, "corpus-0", {"corpus.parquet": empty})
    options = encode.OPTIONS(encoding=EncodingOptions(max_tokens=64))
    inputs = {"retriever": retriever, "corpus": corpus.at("corpus.parquet")}
    with pytest.raises(DataError, match="the corpus has no passages"):
        make(store, "encode", options, inputs)


def test_a_diverged_retriever_is_refused(store, tmp_path):
    import torch
    from sentence_transformers import SentenceTransformer

    folder = save_static_retriever(tmp_path / "diverged", WORDS)
    model = SentenceTransformer(str(folder), device="cpu")
    with torch.no_grad():
        model[0].embedding.weight[:] = torch.nan
    model.save(str(tmp_path / "nan"))
    diverged = store.commit("retriever-nan", tmp_path / "nan", [], {"counts": {}})
    with pytest.raises(DataError, match="not finite"):
        encoded(store, diverged, [("a", "", "red")])
