"""The rows of a training: which texts they have, in which order, in which batches; the dev part."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import retriever_world as world
from hypothesis import given
from hypothesis import strategies as st

from expandr_core.encoders.encode import Encoder, encode_expanded
from expandr_core.encoders.fusion import Fusion
from expandr_core.encoders.load import load_retriever
from expandr_core.errors import DataError
from expandr_core.options.retriever import EncodingOptions, FusionOptions
from expandr_core.options.training import RetrieverTrainingOptions
from expandr_core.records import NEGATIVES
from expandr_core.store.store import Store
from expandr_core.training.dev_metric import dev_set, measure
from expandr_core.training.grad_cache import GradCache
from expandr_core.training.hard_negatives import draw
from expandr_core.training.rows import TrainingRows, batches_of

EXAMPLES = [
    world.example(thing, [other for other in world.TRAINED if other != thing][:4])
    for thing in world.TRAINED
]
EXPANSIONS = [
    (f"q{i}{j}", sample, f"tech{(i, j)[sample]}") for i, j in world.TRAINED for sample in (0, 1)
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def rows_of(store: Store, **changes: Any) -> TrainingRows:
    path = world.write_rows(
        store.scratch / "retriever.parquet", changes.pop("examples", EXAMPLES), world.EXAMPLES
    )
    shards = [
        store.local(part)
        for part in store.shards(
            world.put_expansions(store, "expand-rows", changes.pop("texts", EXPANSIONS))
        )
    ]
    inputs = ("mined", "expansions", "seed")
    arguments = {name: changes.pop(name) for name in inputs if name in changes}
    options = {"expansions_per_query": 2, "epochs": 2, "hard_negatives": 2} | changes
    return TrainingRows(
        path,
        **({"mined": None, "expansions": shards, "seed": 0} | arguments),
        options=RetrieverTrainingOptions(**options),
    )


def test_every_pass_shows_every_example_once_in_an_order_of_its_own(store):
    rows = rows_of(store)
    order = rows.order().reshape(rows.passes, rows.examples)
    assert rows.passes == 4
    for number, numbers in enumerate(order):
        assert sorted(numbers) == list(range(number * len(EXAMPLES), (number + 1) * len(EXAMPLES)))
    assert len({tuple(numbers % rows.examples) for numbers in order}) == rows.passes


def test_expansions_take_turns_and_belong_to_their_query(store):
    rows = rows_of(store, texts=EXPANSIONS[::-1])
    for number in range(rows.passes * rows.examples):
        turn, place = divmod(number, rows.examples)
        thing = world.TRAINED[place]
        query, expansion, positive, *_ = rows.row(number).texts
        assert query == world.query(thing)
        assert positive == world.passage(thing)
        assert expansion == f"tech{thing[turn % 2]}"


def test_hard_negatives_change_from_pass_to_pass_and_are_never_repeated_in_a_row(store):
    rows = rows_of(store)
    for place, example in enumerate(EXAMPLES):
        drawn = [set(rows.row(turn * rows.examples + place).texts[3:]) for turn in range(4)]
        assert drawn[0] | drawn[1] == set(example["negatives"])
        assert all(len(each) == 2 for each in drawn)


@given(st.integers(0, 9), st.integers(0, 5), st.integers(0, 30))
def test_a_draw_has_no_repetition_and_uses_the_whole_pool(size, wanted, turn):
    drawn = draw(size, wanted, turn, lambda cycle: cycle)
    assert len(drawn) == len(set(drawn)) == min(size, wanted)
    assert set(drawn) <= set(range(size))


def test_a_slot_without_a_hard_negative_stays_empty(store):
    example = world.example((0, 2), [(0, 1), (0, 1), (0, 2)])  # one twice, and the positive
    row = (rows := rows_of(store, examples=[example, EXAMPLES[1]])).row(0)
    assert row.texts[3:] == [world.passage((0, 1)), None]
    assert row.label[-1] == -1
    counts = rows.counts()
    assert counts["dropped/hard negatives that are positives or repeated"] == 2
    assert counts["hard negative slots left empty"] == rows.passes


def test_a_positive_of_the_query_in_another_row_is_not_its_hard_negative(store):
    second = world.example((0, 2)) | {"positive_id": "p99", "positive": "tech9 tech9"}
    first = world.example((0, 2)) | {"negative_ids": ["p99"], "negatives": ["tech9 tech9"]}
    rows = rows_of(store, examples=[first, second])
    assert not rows.pools.size.any()


def test_given_negatives_win_over_mined_ones(store):
    mined = [
        {"query_id": f"q{i}{j}", "negative_ids": ["p67"], "negatives": ["tech6 tech7"]}
        for i, j in reversed(world.TRAINED)
    ]
    path = world.write_rows(store.scratch / "negatives.parquet", mined, NEGATIVES)
    first = EXAMPLES[0] | {"negative_ids": [], "negatives": []}
    rows = rows_of(store, examples=[first, *EXAMPLES[1:]], mined=path)
    assert rows.row(0).texts[3] == "tech6 tech7"
    assert rows.row(1).texts[3] in EXAMPLES[1]["negatives"]
    missing = world.write_rows(path, mined[:-1], NEGATIVES)
    with pytest.raises(DataError, match=f"query '{first['query_id']}' has no hard negatives"):
        rows_of(store, examples=[first, *EXAMPLES[1:]], mined=missing)


def test_the_same_id_has_the_same_number_everywhere(store):
    rows = rows_of(store)
    numbers: dict[str, set[int]] = {}
    for number in range(rows.passes * rows.examples):
        texts, label = rows.row(number)
        for place in (0, 2, 3, 4):  # query, positive, hard negatives
            numbers.setdefault(texts[place] or "", set()).add(label[place])
    assert all(len(own) == 1 for own in numbers.values())
    passages = [min(own) for text, own in numbers.items() if text.startswith("tech")]
    assert len(set(passages)) == len(passages)


def test_an_empty_expansion_is_marked_and_counted(store):
    texts = [(query_id, sample, "") for query_id, sample, _ in EXPANSIONS]
    rows = rows_of(store, texts=texts)
    row = rows.row(0)
    assert (row.texts[1], row.label[1]) == (None, -1)
    assert rows.counts()["rows with an empty expansion"] == rows.passes * rows.examples


def test_too_few_or_repeated_expansions_are_refused(store):
    with pytest.raises(DataError, match="no expansion numbered 2"):
        rows_of(store, expansions_per_query=3)
    with pytest.raises(DataError, match="two expansions numbered 1"):
        rows_of(store, texts=[*EXPANSIONS, EXPANSIONS[1]])


def test_a_dev_part_has_whole_queries_and_is_not_trained_on(store):
    second = [
        world.example(thing) | {"positive_id": f"{world.passage_id(thing)}b", "positive": "tech9"}
        for thing in world.TRAINED
    ]
    rows = rows_of(store, examples=[*EXAMPLES, *second], held_out_share=0.4)
    trained = {rows.row(number).texts[0] for number in range(rows.passes * rows.examples)}
    dev = dev_set(rows)
    assert len(trained) + len(dev.queries) == len(EXAMPLES)
    assert not trained & set(dev.queries)
    assert len(dev.qrels) == 2 * len(dev.queries)
    assert set(map(str, dev.qrels["passage_id"])) <= set(map(str, dev.passage_ids))
    assert rows.counts()["dev queries"] == len(dev.queries)
    others = rows_of(store, examples=[*EXAMPLES, *second], held_out_share=0.4, seed=1)
    assert set(dev_set(others).queries) != set(dev.queries)


def test_a_dev_part_without_a_query_or_without_a_rest_is_refused(store):
    with pytest.raises(DataError, match=r"held_out_share \(0.001\) holds out none of 21"):
        rows_of(store, held_out_share=0.001)
    with pytest.raises(DataError, match=r"no example to train .* lower training.held_out_share"):
        rows_of(store, held_out_share=0.999)


def test_the_dev_metric_is_that_of_the_evaluation(store):
    """Of each held-out query and its expansions, one of which is empty; nDCG@10 worked out here."""
    texts = [row if row[:2] != ("q02", 1) else ("q02", 1, "") for row in EXPANSIONS]
    rows = rows_of(store, examples=EXAMPLES[:8], texts=texts, held_out_share=0.5)
    assert world.query((0, 2)) in dev_set(rows).queries
    dev = dev_set(rows)
    folder = world.save_static(store.scratch / "model")
    encoding = EncodingOptions(max_tokens=32)
    own = Encoder(folder, "cpu", encoding)
    written: dict[str, list[str]] = {}
    for query_id, _, text in texts:
        written.setdefault(query_id, []).extend([text] if text else [])
    ids = {row["query"]: row["query_id"] for row in EXAMPLES}
    expansions = [written[ids[query]] for query in dev.queries]
    queries = encode_expanded(own, dev.queries, expansions, FusionOptions())
    scores = queries @ own.encode_passages(dev.passages).T
    positives = {row["query"]: row["positive"] for row in EXAMPLES}
    gains = []
    for query, row in zip(dev.queries, scores, strict=True):
        rank = int((row > row[dev.passages.index(positives[query])]).sum()) + 1
        gains.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
    assert 0 < np.mean(gains) < 1
    model = load_retriever(folder, "cpu", encoding)
    found = measure(GradCache(model, "float32", 7), dev, Fusion(True, 0.5))
    assert found == pytest.approx(np.mean(gains), abs=1e-6)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 7),
)
def test_batches_by_source_have_every_row_once_and_mix_only_what_is_left(sources, size):
    order = np.random.default_rng(0).permutation(len(sources))
    of_rows = np.array(sources)[order]
    batches = batches_of(order, size, of_rows)
    assert sorted(np.concatenate(batches)) == list(range(len(sources)))
    assert all(len(batch) == size for batch in batches[:-1])
    number = {row: place for place, row in enumerate(order.tolist())}
    pure = sum(int(count) // size for count in np.bincount(of_rows))
    assert all(len({sources[row] for row in batch}) == 1 for batch in batches[:pure])
    for batch in [*batches[:pure], np.concatenate([*batches[pure:], []]).astype(int)]:
        places = [number[row] for row in batch.tolist()]
        assert places == sorted(places)  # in the order of training
    ends = [number[batch[-1]] for batch in batches[:pure]]
    assert ends == sorted(ends)


def test_the_source_of_each_training_example_is_known(store):
    mixed = [row | {"source": "ab"[place % 2]} for place, row in enumerate(EXAMPLES)]
    rows = rows_of(store, examples=mixed, held_out_share=0.4)
    assert rows.sources().tolist() == [int(line) % 2 for line in rows.train]
