"""The stage encode: rows in the order of the corpus; only what changed is encoded."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from evaluation_world import WORDS, make, of_shards, put, save_static_retriever, table
from flat_options import flat
from store_keys import full

from expandr_core.encoders.encode import Encoder
from expandr_core.encoders.vector_cache import VectorCache, digests_of
from expandr_core.errors import DataError
from expandr_core.options.retriever import EncodingOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import count_shards, make_spec, run_stage, share_stage
from expandr_core.stages import encode
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.garbage import find_garbage, remove_garbage
from expandr_core.store.store import Store

CORPUS = ["passage_id", "title", "text"]
Row = tuple[str, str, str]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(encode, "PASSAGES_PER_SHARD", 4)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def retriever(store, tmp_path):
    folder = save_static_retriever(tmp_path / "retriever", WORDS)
    return store.commit(full("retriever-1"), folder, [], {"counts": {}})


def put_corpus(store: Store, rows: list[Row]) -> Artifact:
    """Make a corpus, under a key of its content."""
    key = f"corpus-{hashlib.sha256(repr(rows).encode()).hexdigest()[:20]}"
    return store.lookup(key) or put(store, key, {"corpus.parquet": table(CORPUS, rows)})


def spec_of(
    store: Store, retriever: Artifact, rows: list[Row], seed: int = 0, **options: Any
) -> StageSpec:
    encoding = EncodingOptions(max_tokens=options.pop("max_tokens", 64), similarity="dot")
    chosen = flat(encode.OPTIONS, encoding=encoding, **options)
    corpus = put_corpus(store, rows).at("corpus.parquet")
    inputs = {"retriever": retriever, "corpus": corpus}
    return make_spec("encode", chosen, inputs, seed=seed, device="cpu")


def encoded(store: Store, retriever: Artifact, rows: list[Row], **options: Any) -> Artifact:
    return run_stage(spec_of(store, retriever, rows, **options), store, no_progress)


def passages(count: int, first: int = 0) -> list[Row]:
    """Make passages of different content."""
    digits = [np.base_repr(first + n, len(WORDS)) for n in range(count)]
    return [
        (f"p{first + n:05}", "", " ".join(WORDS[int(digit)] for digit in number))
        for n, number in enumerate(digits)
    ]


def vectors_of(store: Store, artifact: Artifact) -> np.ndarray:
    shards = store.shards(artifact)
    return np.concatenate([np.load(store.local(shard) / "vectors.npy") for shard in shards])


def ids_of(store: Store, artifact: Artifact) -> list[str]:
    return of_shards(store, artifact, "passages.parquet")["passage_id"]


def work_of(artifact: Artifact) -> tuple[float, float]:
    """Return how many passages were encoded, and how many were reused."""
    return artifact.counts["encoded"], artifact.counts["reused"]


def encoded_from_nothing(tmp_path: Path, rows: list[Row], **options: Any) -> Artifact:
    """Encode in a store that has nothing yet."""
    store = Store(str(tmp_path / "elsewhere"))
    folder = save_static_retriever(tmp_path / "again", WORDS)
    return encoded(
        store, store.commit(full("retriever-1"), folder, [], {"counts": {}}), rows, **options
    )


def test_vectors_are_those_of_title_and_text_in_the_corpus_s_order(store, retriever):
    random = np.random.default_rng(0)
    rows = [
        (f"p{n}", "red" if n % 2 else "", " ".join(random.choice(WORDS, random.integers(3, 9))))
        for n in range(11)
    ]
    encoder = Encoder(store.local(retriever), "cpu", EncodingOptions(similarity="dot"))
    expected = encoder.encode_passages([f"{title} {text}".strip() for _, title, text in rows])
    for vector_type, half in (("float16", True), ("float32", False)):
        artifact = encoded(store, retriever, rows, vector_type=vector_type)
        assert len(store.shards(artifact)) == 3
        vectors = vectors_of(store, artifact)
        assert vectors.dtype == vector_type
        assert np.array_equal(vectors, expected.astype(np.float16) if half else expected)
        assert ids_of(store, artifact) == [row[0] for row in rows]
        counts = {"passages": 11, "dimensions": 8, "encoded": 11, "reused": 0}
        assert artifact.counts == counts


def test_vectors_are_scaled_only_if_normalised(store, retriever):
    artifact = encoded(store, retriever, [("a", "", "red"), ("b", "", "")])
    lengths = np.linalg.norm(vectors_of(store, artifact), axis=1)
    assert lengths[0] > 1.1
    assert lengths[1] == 0


def added(rows: list[Row]) -> list[Row]:
    return [*rows[:7], *passages(10, first=1000), *rows[7:]]


def changed(rows: list[Row]) -> list[Row]:
    return [*rows[:20], ("p00020", "", "another text"), *rows[21:]]


@pytest.mark.parametrize(
    ("change", "encodes"),
    [
        (added, 10),
        (changed, 1),
        (lambda rows: rows[3:17] + rows[18:], 0),  # deleted
        (lambda rows: rows[::-1], 0),  # moved
        (lambda rows: [(f"new-{id_}", title, text) for id_, title, text in rows], 0),  # renamed
        (lambda rows: [(id_, *text.split(" ", 1)) for id_, _, text in rows], 0),  # titled
        (lambda rows: rows + [(f"again-{id_}", "", text) for id_, _, text in rows], 0),
    ],
)
def test_only_what_changed_is_encoded_and_the_result_is_that_of_encoding_all(
    store, retriever, tmp_path, change, encodes
):
    before = passages(50, first=100)
    encoded(store, retriever, before)
    after = change(before)
    artifact = encoded(store, retriever, after)
    assert work_of(artifact) == (encodes, len(after) - encodes)
    assert artifact.digest == encoded_from_nothing(tmp_path, after).digest
    assert ids_of(store, artifact) == [row[0] for row in after]


def test_a_content_that_occurs_twice_is_encoded_once(store, retriever):
    rows = passages(10)
    twice = [row for id_, _, text in rows for row in ((f"{id_}a", "", text), (f"{id_}b", "", text))]
    far = [(f"{id_}c", "", text) for id_, _, text in rows]
    artifact = encoded(store, retriever, twice + far)
    assert work_of(artifact) == (10, 20)
    vectors = vectors_of(store, artifact)
    assert np.array_equal(vectors[:20:2], vectors[1:20:2])
    assert np.array_equal(vectors[:20:2], vectors[20:])


def test_passages_added_at_the_end_change_only_the_last_shard(store, retriever):
    rows = passages(10)
    before = store.shards(encoded(store, retriever, rows))
    after = store.shards(encoded(store, retriever, [*rows, *passages(1, first=99)]))
    assert after[:2] == before[:2]
    assert after[2] != before[2]


def test_another_retriever_or_other_options_reuse_nothing(store, retriever, tmp_path):
    rows = passages(9)
    encoded(store, retriever, rows)
    folder = save_static_retriever(tmp_path / "other", [*WORDS, "more"])
    other = store.commit(full("retriever-2"), folder, [], {"counts": {}})
    assert work_of(encoded(store, other, rows)) == (9, 0)
    assert work_of(encoded(store, retriever, rows, max_tokens=32)) == (9, 0)
    assert work_of(encoded(store, retriever, rows, vector_type="float32")) == (9, 0)
    assert work_of(encoded(store, retriever, rows, seed=1)) == (0, 9)


def test_the_encoding_of_the_same_corpus_is_found_among_many(store, retriever):
    rows = passages(20)
    encoded(store, retriever, rows)
    for n in range(9):
        encoded(store, retriever, passages(30 + n, first=1000 * (n + 1)))
    assert work_of(encoded(store, retriever, [*rows, *passages(2, first=500)])) == (2, 20)


def test_what_was_encoded_before_a_fresh_start_is_not_reused(store, retriever):
    rows = passages(9)
    encoded(store, retriever, rows)
    spec = spec_of(store, retriever, rows)
    of_another_run = {"fresh": True, "prefect_flow_run": "another"}
    fresh = spec.model_copy(update={"runtime": spec.runtime | of_another_run})
    assert work_of(run_stage(fresh, store, no_progress)) == (9, 0)


@pytest.mark.parametrize(("gone", "encodes"), [("whole", 12), ("shard", 4), ("damaged shard", 4)])
def test_earlier_vectors_that_are_gone_or_damaged_are_made_again(
    store, retriever, tmp_path, gone, encodes
):
    rows = passages(12)
    before = encoded(store, retriever, rows)
    shard = store.shards(before)[1]
    if gone == "damaged shard":
        (store.local(shard) / "vectors.npy").write_bytes(b"damaged")
    else:
        store.remove(before.key if gone == "whole" else shard.key)
    artifact = encoded(store, retriever, rows[::-1])
    assert work_of(artifact) == (encodes, 12 - encodes)
    assert artifact.digest == encoded_from_nothing(tmp_path, rows[::-1]).digest


def test_vectors_that_vanish_before_they_are_read_count_as_unknown(store, retriever):
    rows = passages(8)
    before = encoded(store, retriever, rows)
    first, second = store.shards(before)
    digests = digests_of([text for _, _, text in rows])
    with closing(VectorCache(store, digests)) as cache:
        cache.add_encodings([store.manifest(before.key)])
        assert cache.covers(digests)
        store.remove(first.key)
        vectors, there = cache.take(digests)
        assert there.tolist() == [False] * 4 + [True] * 4
        assert vectors is not None
        assert np.array_equal(vectors[4:], np.load(store.local(second) / "vectors.npy"))
        store.remove(second.key)
        vectors, there = cache.take(digests)
        assert vectors is None and not there.any()


def test_a_later_encoding_neither_needs_nor_keeps_an_earlier_one(store, retriever):
    rows = passages(12)
    before = encoded(store, retriever, rows)
    after = encoded(store, retriever, rows[::-1])
    assert work_of(after) == (0, 12)
    store.write_record("1", {"name": "1", "steps": [{"artifact": after.model_dump()}]})
    remove_garbage(find_garbage(store, None, datetime.now(UTC) + timedelta(days=1)))
    assert store.lookup(before.key) is None
    assert store.keys("encode_shard") == sorted(part.key for part in store.shards(after))
    assert store.verify(after.key) == after


def test_after_a_kill_the_rest_is_encoded_and_the_result_is_the_same(
    store, retriever, tmp_path, monkeypatch
):
    rows = passages(22)
    encoded(store, retriever, rows[5:9])
    write = encode._write_shard
    written = []

    def dying(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(*arguments))
        return written[-1]

    monkeypatch.setattr(encode, "_write_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        encoded(store, retriever, rows)
    monkeypatch.setattr(encode, "_write_shard", write)
    artifact = encoded(store, retriever, rows)
    assert work_of(artifact) == (18, 4)
    assert artifact.digest == encoded_from_nothing(tmp_path, rows).digest


def test_several_runs_share_the_shards_and_a_last_one_finds_them(
    store, retriever, tmp_path, monkeypatch
):
    rows = passages(18)
    encoded(store, retriever, rows[:6])
    earlier = len(store.keys("encode_shard"))
    spec = spec_of(store, retriever, rows[1:])
    assert count_shards(spec, store) == 5
    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(share_stage, spec, store, no_progress) for _ in range(2)]:
            run.result()
    assert len(store.keys("encode_shard")) - earlier == 5
    assert store.lookup(spec.key) is None
    monkeypatch.setattr(encode, "_write_shard", None)  # nothing is left to encode
    whole = run_stage(spec, store, no_progress)
    assert work_of(whole) == (12, 5)
    monkeypatch.undo()
    monkeypatch.setattr(encode, "PASSAGES_PER_SHARD", 4)
    assert whole.digest == encoded_from_nothing(tmp_path, rows[1:]).digest


def test_fresh_runs_share_the_shards_and_take_none_from_before(store, retriever, monkeypatch):
    rows = passages(18)
    encoded(store, retriever, rows)
    spec = spec_of(store, retriever, rows)
    fresh = {"fresh": True, "prefect_flow_run": "this run"}
    spec = spec.model_copy(update={"runtime": spec.runtime | fresh})
    write, written = encode._write_shard, []
    monkeypatch.setattr(encode, "_write_shard", lambda *all: written.append(1) or write(*all))
    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(share_stage, spec, store, no_progress) for _ in range(2)]:
            run.result()
    made = run_stage(spec, store, no_progress)
    assert len(written) == len(store.shards(made)) == 5
    share_stage(spec, store, no_progress)  # a run that comes too late
    assert len(written) == 5
    assert not Path(store.root, "locks").exists() or not any(Path(store.root, "locks").iterdir())


def test_vectors_are_reused_from_s3(remote, tmp_path):
    folder = save_static_retriever(tmp_path / "retriever", WORDS)
    retriever = remote.commit(full("retriever-1"), folder, [], {"counts": {}})
    rows = passages(12)
    encoded(remote, retriever, rows)
    artifact = encoded(remote, retriever, [*rows[::-1], *passages(1, first=99)])
    assert work_of(artifact) == (1, 12)
    remote.cache.make_room(0)
    for key in remote.keys("encode_shard"):
        assert remote.cache.remove(key)  # nobody holds it


def test_an_empty_corpus_is_refused(store, retriever):
    empty = pa.schema([(name, pa.string()) for name in CORPUS]).empty_table()
    corpus = put(store, "corpus-0", {"corpus.parquet": empty})
    options = flat(encode.OPTIONS, encoding=EncodingOptions(max_tokens=64))
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
    diverged = store.commit(full("retriever-nan"), tmp_path / "nan", [], {"counts": {}})
    with pytest.raises(DataError, match="not finite"):
        encoded(store, diverged, [("a", "", "red")])


def test_a_vector_that_float16_cannot_hold_is_refused_and_float32_holds_it(store, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(save_static_retriever(tmp_path / "small", WORDS)), device="cpu")
    model[0].embedding.weight.data[:] *= 1e6
    model.save(str(tmp_path / "large"))
    large = store.commit(full("retriever-large"), tmp_path / "large", [], {"counts": {}})
    with pytest.raises(
        DataError, match=r"component .*e\+06.*set retriever\.index\.vector_type to float32"
    ):
        encoded(store, large, [("a", "", "red")])
    assert work_of(encoded(store, large, [("a", "", "red")], vector_type="float32")) == (1, 0)
