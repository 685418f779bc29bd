"""Mining: which passages become hard negatives, of which queries, in which order."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import retriever_world as world
from flat_options import flat

from expandr_core.encoders.encode import Encoder
from expandr_core.encoders.vector_cache import digests_of
from expandr_core.errors import DataError
from expandr_core.options.retriever import EncodingOptions
from expandr_core.records import NEGATIVES, Passage
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import encode, mine
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
from expandr_core.training.mining import Texts, forbidden

ENCODING = EncodingOptions(max_tokens=32)
CORPUS = pa.schema([(name, pa.string()) for name in ("passage_id", "title", "text")])
PASSAGES = [
    *(
        {"passage_id": world.passage_id(x), "title": "", "text": world.passage(x)}
        for x in world.THINGS
    ),
    {"passage_id": "twin", "title": "tech0", "text": "tech1"},  # the text of p01
    {"passage_id": "empty", "title": "", "text": ""},
    {"passage_id": "q23", "title": "", "text": "tech2 tech3 lay2"},  # has a query's id
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def inputs(store: Store, tmp_path: Path) -> dict[str, Artifact]:
    folder = tmp_path / "corpus"
    world.write_rows(folder / "corpus.parquet", PASSAGES, CORPUS)
    corpus = world.put(store, "prepare-corpus", folder).at("corpus.parquet")
    retriever = world.put(store, "import-static", world.save_static(tmp_path / "model"))
    options = flat(encode.OPTIONS, encoding=ENCODING)
    spec = make_spec("encode", options, {"retriever": retriever, "corpus": corpus}, device="cpu")
    embeddings = run_stage(spec, store, no_progress)
    return {"retriever": retriever, "corpus": corpus, "embeddings": embeddings}


def mined(store: Store, inputs: dict[str, Artifact], examples: list[Any], **options: Any) -> dict:
    settings = {"depth": 5, "expansions_per_query": 1}
    chosen = flat(mine.OPTIONS, encoding=ENCODING, **(settings | options))
    inputs = inputs | {"examples": world.put_examples(store, "prepare-examples", examples)}
    spec = make_spec("mine", chosen, inputs, device="cpu")
    artifact = run_stage(spec, store, no_progress)
    table = pq.read_table(store.local(artifact) / "negatives.parquet")
    assert table.schema == NEGATIVES
    assert table["query_id"].to_pylist() == sorted(table["query_id"].to_pylist())
    return {row["query_id"]: row for row in table.to_pylist()}


def test_the_nearest_passages_but_the_positives_are_mined_with_their_texts(store, inputs):
    things = [(1, 2), (0, 5)]
    found = mined(store, inputs, [world.example(thing) for thing in things])
    encoder = Encoder(store.local(inputs["retriever"]), "cpu", ENCODING)
    rows = sorted(PASSAGES, key=lambda row: row["passage_id"], reverse=True)  # decides ties
    texts = {row["passage_id"]: f"{row['title']} {row['text']}".strip() for row in rows}
    passages = encoder.encode_passages(list(texts.values()))
    for thing in things:
        query_id, positive_id = world.example(thing)["query_id"], world.passage_id(thing)
        scores = passages @ encoder.encode_queries([world.query(thing)])[0]
        nearest = [list(texts)[place] for place in np.argsort(-scores, kind="stable")[:5]]
        expected = [passage_id for passage_id in nearest if passage_id != positive_id]
        assert found[query_id]["negative_ids"] == expected
        assert found[query_id]["negatives"] == [texts[each] for each in expected]


def test_no_positive_no_twin_of_one_and_no_empty_passage_is_mined(store, inputs):
    second = world.example((0, 1)) | {"positive_id": "p02", "positive": "tech0 tech2"}
    everything = len(PASSAGES)
    found = mined(store, inputs, [world.example((0, 1)), second], depth=everything)
    left = {row["passage_id"] for row in PASSAGES} - {"p01", "p02", "twin", "empty"}
    assert set(found["q01"]["negative_ids"]) == left


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\u2003", "\x1f", "\x85", "\ufeff"])
@pytest.mark.parametrize("title", ["{}", "{}Title", ""])
def test_a_passages_text_is_one_whatever_spaces_stand_around_it(title, space, tmp_path):
    """The passage is the text that the encoder reads and that preparing the data notes as positive."""
    passage = Passage("p1", title.format(space), f"{space}text{space}")
    path = world.write_rows(tmp_path / "c.parquet", [passage._asdict()], CORPUS)
    ids, digests = pa.array(["p1"]), digests_of([passage.content])
    texts = Texts(path, ids, digests).read(np.array([0]))
    examples = {name: pa.array([value], pa.large_string()) for name, value in
                {"query_id": "q", "positive_id": "", "positive": passage.content}.items()}  # fmt: skip
    contents, wrong = forbidden(examples, pa.array(["q"]), ids, digests)
    assert texts.to_pylist() == [passage.content]
    assert wrong.tolist() == contents.tolist()


def test_the_passage_with_the_querys_id_is_not_mined(store, inputs):
    found = mined(store, inputs, [world.example((2, 3)), world.example((1, 2))], depth=40)
    assert "q23" not in found["q23"]["negative_ids"]
    assert "q23" in found["q12"]["negative_ids"]


def test_a_margin_leaves_out_what_is_as_similar_as_the_least_similar_positive(store, inputs):
    second = world.example((1, 2)) | {"positive_id": "p15", "positive": "tech1 tech5"}
    examples = [world.example((1, 2)), second, world.example((3, 4))]
    everything = mined(store, inputs, examples, depth=40)
    found = mined(store, inputs, examples, depth=40, margin=0.25)
    encoder = Encoder(store.local(inputs["retriever"]), "cpu", ENCODING)
    for query_id, thing, positives in (
        ("q12", (1, 2), ["tech1 tech2", "tech1 tech5"]),
        ("q34", (3, 4), ["tech3 tech4"]),
    ):
        query = encoder.encode_queries([world.query(thing)])[0]
        least = float(min(encoder.encode_passages(positives) @ query))
        limit = least - 0.25 * abs(least)
        row = everything[query_id]
        scores = encoder.encode_passages(row["negatives"]) @ query
        expected = [
            each for each, score in zip(row["negative_ids"], scores, strict=True) if score <= limit
        ]
        assert 0 < len(expected) < len(row["negative_ids"])
        assert found[query_id]["negative_ids"] == expected


def test_a_query_may_be_left_without_negatives(store, inputs):
    example = world.example((1, 2)) | {"query": "tech1 tech2"}
    found = mined(store, inputs, [example], depth=1)
    assert found["q12"] == {"query_id": "q12", "negative_ids": [], "negatives": []}


def test_expansions_move_the_query_to_what_they_tell(store, inputs):
    texts = [("q12", 0, "tech6 tech7"), ("q12", 1, "tech6 tech7"), ("q45", 0, ""), ("q45", 1, "")]
    examples = [world.example((4, 5)), world.example((1, 2))]
    expanded = inputs | {"expansions": world.put_expansions(store, "expand-a", texts)}
    plain = mined(store, inputs, examples, depth=40)
    found = mined(store, expanded, examples, depth=40, expansions_per_query=2)
    ranks = [rows["q12"]["negative_ids"].index("p67") + 1 for rows in (plain, found)]
    assert ranks[0] > 10 > ranks[1]
    assert found["q45"] == plain["q45"]


def test_embeddings_of_another_corpus_are_refused(store, inputs, tmp_path):
    folder = tmp_path / "other"
    world.write_rows(folder / "corpus.parquet", PASSAGES[1:], CORPUS)
    other = {"corpus": world.put(store, "prepare-other", folder).at("corpus.parquet")}
    with pytest.raises(DataError, match="'p01' of the embeddings is not in the corpus"):
        mined(store, inputs | other, [world.example((1, 2))])


def test_embeddings_of_another_retriever_are_refused(store, inputs, tmp_path):
    folder = world.save_static(tmp_path / "wide", dimensions=32)
    other = {"retriever": world.put(store, "import-wide", folder)}
    with pytest.raises(DataError, match="16 dimensions, the retriever 32"):
        mined(store, inputs | other, [world.example((1, 2))])


def test_a_text_that_changed_since_it_was_encoded_is_refused(store, inputs, tmp_path):
    changed = [row | {"text": f"{row['text']} tech9"} for row in PASSAGES]
    folder = tmp_path / "other"
    world.write_rows(folder / "corpus.parquet", changed, CORPUS)
    other = {"corpus": world.put(store, "prepare-other", folder).at("corpus.parquet")}
    with pytest.raises(DataError, match="not the one that was encoded; encode this corpus"):
        mined(store, inputs | other, [world.example((1, 2))])


def test_negatives_do_not_depend_on_the_memory_or_the_order_of_the_corpus(store, inputs, tmp_path):
    examples = [world.example((x, y)) for x in range(5) for y in range(x + 1, 6)]
    found = mined(store, inputs, examples, depth=9)
    assert mined(store, inputs, examples, depth=9, search_memory_gb=1e-6) == found
    folder = tmp_path / "other"
    world.write_rows(folder / "corpus.parquet", PASSAGES[::-1], CORPUS)
    other = {"corpus": world.put(store, "prepare-other", folder).at("corpus.parquet")}
    assert mined(store, inputs | other, examples, depth=9) == found
