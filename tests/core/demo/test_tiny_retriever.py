"""The tiny retriever: crops, determinism, and that it has learnt from them."""

from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_keys import full

from expandr_core.encoders.encode import Encoder
from expandr_core.errors import DataError
from expandr_core.options.retriever import EncodingOptions, TinyRetrieverOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages.tiny_retriever import crop, crop_pairs
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

OPTIONS = TinyRetrieverOptions(vocabulary=600, dimensions=32, steps=60, batch_size=16)
THINGS = ["dewcap", "hushbell", "moonwort", "saltspur", "coppertail", "widowcomb"]
PLACES = ["marshes", "gorges", "terraces", "estuaries", "moraines", "plateaus"]
PASSAGES = [
    f"{thing} grows in {place} where {place} are and {thing} is known"
    for thing, place in zip(THINGS, PLACES, strict=True)
]


def run_retriever(folder: Path, passages: list[str], seed: int = 0) -> tuple[Artifact, Path]:
    store = Store(str(folder / "store"))
    work = folder / "data"
    work.mkdir(parents=True)
    ids = [f"p{number}" for number in range(len(passages))]
    corpus = {"passage_id": ids, "title": [""] * len(ids), "text": passages}
    pq.write_table(pa.table(corpus), work / "corpus.parquet")
    texts = {"kind": ["text"], "prompt": [""], "text": ["Where Dewcap grows"]}
    pq.write_table(pa.table(texts), work / "texts.parquet")
    data = store.commit(full("prepare-0"), work, [], {"counts": {}})
    inputs = {"corpus": data.at("corpus.parquet"), "texts": data.at("texts.parquet")}
    spec = make_spec("tiny_retriever", OPTIONS, inputs, seed=seed, device="cpu")
    artifact = run_stage(spec, store, no_progress)
    return artifact, store.local(artifact)


def test_a_crop_is_a_run_of_words_of_30_to_80_percent():
    words = [f"w{number}" for number in range(50)]
    for seed in range(50):
        taken = crop(words, Random(seed)).split()
        start = words.index(taken[0])
        assert taken == words[start : start + len(taken)]
        assert 15 <= len(taken) <= 40


def test_a_crop_of_few_words_keeps_what_there_is():
    assert crop(["one", "two"], Random(0)) == "one two"


def test_the_passages_of_a_batch_are_different():
    passages = [" ".join([f"p{number}"] * 9) for number in range(20)]
    pairs = list(crop_pairs(passages, 5, 10, Random(0)))
    assert len(pairs) == 50
    for start in range(0, 50, 10):
        batch = [anchor.split()[0] for anchor, _ in pairs[start : start + 10]]
        assert len(set(batch)) == 10


def test_halves_of_a_passage_find_each_other(tmp_path: Path):
    _, folder = run_retriever(tmp_path, PASSAGES)
    encoder = Encoder(folder, "cpu", EncodingOptions(max_tokens=64))
    things, places = map(encoder.encode_passages, (THINGS, PLACES))  # (passages, dimensions)
    assert (things @ places.T).argmax(axis=1).tolist() == list(range(6))


def test_case_does_not_matter(tmp_path: Path):
    _, folder = run_retriever(tmp_path, PASSAGES)
    encoder = Encoder(folder, "cpu", EncodingOptions(max_tokens=64))
    lower, upper = encoder.encode_passages(["dewcap", "DewCap"])
    assert np.array_equal(lower, upper)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path):
    first, _ = run_retriever(tmp_path / "a", PASSAGES)
    second, _ = run_retriever(tmp_path / "b", PASSAGES)
    other, _ = run_retriever(tmp_path / "c", PASSAGES, seed=1)
    assert first.files == second.files
    assert first.digest != other.digest


def test_a_corpus_of_one_passage_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="needs two"):
        run_retriever(tmp_path, ["only one", ""])
