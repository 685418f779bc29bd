"""The stage encode: rows in the order of the corpus, whatever the blocks."""

import numpy as np
import pyarrow as pa
import pytest
from evaluation_world import WORDS, columns, make, put, save_static_retriever, table

from expandr_core.encoder import Encoder
from expandr_core.errors import DataError
from expandr_core.models import model_files
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
    chosen = encode.OPTIONS(**{"normalize": True, "max_tokens": 64} | options)
    return make(
        store, "encode", chosen, {"retriever": retriever, "corpus": corpus.at("corpus.parquet")}
    )


def test_vectors_are_those_of_title_and_text_in_the_corpus_s_order(store, retriever, monkeypatch):
    monkeypatch.setattr(encode, "_SORTED_AT_ONCE", 4)
    monkeypatch.setattr(encode, "_ENCODED_AT_ONCE", 3)
    random = np.random.default_rng(0)
    rows = [
        (f"p{n}", "red" if n % 2 else "", " ".join(random.choice(WORDS, random.integers(0, 9))))
        for n in range(11)
    ]
    artifact, folder = encoded(store, retriever, rows)
    encoder = Encoder(store.local(retriever), "cpu", True, 64, 2)
    expected = encoder.encode([f"{title} {text}".strip() for _, title, text in rows])
    vectors = np.load(folder / "vectors.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert columns(folder / "passages.parquet")["passage_id"] == [row[0] for row in rows]
    assert artifact.counts == {"passages": 11, "dimensions": 8}


def test_vectors_are_left_as_they_are_unless_normalised(store, retriever):
    _, folder = encoded(store, retriever, [("a", "", "red"), ("b", "", "")], normalize=False)
    lengths = np.linalg.norm(np.load(folder / "vectors.npy"), axis=1)
    assert lengths[0] > 1.1
    assert lengths[1] == 0


def test_an_empty_corpus_is_refused(store, retriever):
    empty = pa.schema([(name, pa.string()) for name in CORPUS]).empty_table()
    corpus = put(store, "corpus-0", {"corpus.parquet": empty})
    options = encode.OPTIONS(normalize=True, max_tokens=64)
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
