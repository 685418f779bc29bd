"""Prepare: which query goes where, with what, and that the same input gives the same bytes."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from store_keys import full

from expandr_core.data.formats.triples import text_id
from expandr_core.data.split import SPLIT_NAMES, normalise
from expandr_core.errors import DataError
from expandr_core.options.data import DataOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages.prepare import source_digests
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

DATA = Path(os.environ.get("EXPANDR_TEST_DATA", "nowhere"))


def prepare(
    folder: Path, seed: int = 0, inputs: dict[str, Artifact] | None = None, **options: Any
) -> tuple[Artifact, dict[str, list[dict[str, Any]]]]:
    """Run the stage in a store; return the artifact and its tables' rows, by name."""
    data = DataOptions(**options)
    store = Store(str(folder))
    spec = make_spec("prepare", data, inputs, seed=seed, sources=source_digests(data))
    artifact = run_stage(spec, store, no_progress)
    tables = {path.stem: pq.read_table(path) for path in store.local(artifact).glob("*.parquet")}
    return artifact, {name: table.to_pylist() for name, table in tables.items()}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_qrels(folder: Path, split: str, rows: list[tuple[str, str, int]]) -> None:
    path = folder / "qrels" / f"{split}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def wings(tmp_path: Path) -> Path:
    """40 training queries with two relevant passages each, 10 test queries, 60 passages."""
    folder = tmp_path / "wings"
    write(
        folder / "corpus.jsonl",
        [{"_id": f"d{n}", "title": f"T{n}", "text": f"text {n}"} for n in range(60)],
    )
    write(
        folder / "queries.jsonl",
        [
            {"_id": f"q{n}", "text": f"Question {n}", "metadata": {"entity": f"e{n // 2}"}}
            for n in range(60)
        ],
    )
    train = [(f"q{n}", f"d{n}", 1) for n in range(40)]
    train += [(f"q{n}", f"d{n + 1}", 2) for n in range(40)]
    train += [(f"q{n}", f"d{n + 2}", 0) for n in range(40)]
    write_qrels(folder, "train", train)
    write_qrels(folder, "test", [(f"q{n}", f"d{n}", 1 + n % 2) for n in range(40, 50)])
    return folder


def queries_of(tables: dict[str, list[dict[str, Any]]]) -> dict[str, set[str]]:
    """The query ids by split."""
    names = {"dev": "dev_queries"}
    return {
        name: {row["query_id"] for row in tables[names.get(name, name)]} for name in SPLIT_NAMES
    }


def test_a_collection_is_split_by_role(wings: Path, tmp_path: Path) -> None:
    artifact, tables = prepare(tmp_path / "store", collection=str(wings), dev_share=0.2)
    assert [row["passage_id"] for row in tables["corpus"]] == [f"d{n}" for n in range(60)]
    splits = queries_of(tables)
    assert all(splits.values())
    assert set.union(*splits.values()) == {f"q{n}" for n in range(40)}
    assert sum(map(len, splits.values())) == 40
    for name, number in {name: len(ids) for name, ids in splits.items()}.items():
        assert artifact.counts[f"{name}/queries/train"] == number
    first = tables["retriever"][0]
    number = int(first["query_id"][1:])
    assert first == {
        "query_id": f"q{number}",
        "query": f"Question {number}",
        "source": "train",
        "positive_id": f"d{number}",
        "positive": f"T{number} text {number}",
        "negative_ids": [],
        "negatives": [],
    }
    for name in ("preference", "retriever"):
        keys = [(row["query_id"], row["positive_id"]) for row in tables[name]]
        assert keys == sorted(keys)
        assert len(keys) == 2 * len(splits[name])
    judged = {(row["query_id"], row["relevance"]) for row in tables["dev_qrels"]}
    assert judged == {(query_id, grade) for query_id in splits["dev"] for grade in (0, 1, 2)}
    assert "dev_corpus" not in tables


def test_only_judged_queries_are_test_queries(wings: Path, tmp_path: Path) -> None:
    _, tables = prepare(tmp_path / "store", collection=str(wings), cluster_by="entity")
    assert tables["test_queries"] == [
        {"query_id": f"q{n}", "query": f"Question {n}", "cluster": f"e{n // 2}"}
        for n in range(40, 50)
    ]
    assert tables["test_qrels"] == [
        {"query_id": f"q{n}", "passage_id": f"d{n}", "relevance": 1 + n % 2} for n in range(40, 50)
    ]


def test_a_query_is_its_own_cluster_unless_told_otherwise(wings: Path, tmp_path: Path) -> None:
    _, tables = prepare(tmp_path / "store", collection=str(wings))
    assert all(row["cluster"] == row["query_id"] for row in tables["test_queries"])


def test_a_test_query_without_its_cluster_is_refused(wings: Path, tmp_path: Path) -> None:
    path = wings / "queries.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[43]["metadata"] = {}
    rows[59]["metadata"] = {}  # not judged
    write(path, rows)
    with pytest.raises(DataError, match=r"queries.jsonl:44: query 'q43' has no \"entity\""):
        prepare(tmp_path / "store", collection=str(wings), cluster_by="entity")


def test_dev_queries_that_are_all_test_queries_are_refused(wings: Path, tmp_path: Path) -> None:
    write_qrels(wings, "dev", [("q40", "d1", 1)])
    with pytest.raises(DataError, match=r"all queries of qrels/dev.tsv are also test queries"):
        prepare(tmp_path / "store", collection=str(wings))


def test_given_dev_judgements_replace_the_dev_part(wings: Path, tmp_path: Path) -> None:
    write_qrels(wings, "dev", [(f"q{n}", "d1", 1) for n in range(50, 55)])
    artifact, tables = prepare(tmp_path / "store", collection=str(wings), dev_share=0.4)
    assert [row["query_id"] for row in tables["dev_queries"]] == [f"q{n}" for n in range(50, 55)]
    training = {row["query_id"] for name in ("preference", "retriever") for row in tables[name]}
    assert training == {f"q{n}" for n in range(40)}
    assert artifact.counts["dev/queries"] == 5


def test_training_queries_that_are_dev_or_test_queries_are_dropped_and_shown(
    wings: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = wings / "queries.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["text"] = "  question\t45 "  # a test query
    rows[1]["text"] = "QUESTION 51"  # a dev query
    rows[52]["text"] = "Question 46"  # dev, and a test query
    write(path, rows)
    write_qrels(wings, "dev", [(f"q{n}", "d1", 1) for n in range(50, 55)])
    artifact, tables = prepare(tmp_path / "store", collection=str(wings))
    training = {row["query_id"] for name in ("preference", "retriever") for row in tables[name]}
    assert training == {f"q{n}" for n in range(2, 40)}
    assert "q52" not in {row["query_id"] for row in tables["dev_queries"]}
    dropped = {name: n for name, n in artifact.counts.items() if name.startswith("dropped")}
    assert dropped == {
        "dropped/training queries that are dev or test queries": 2,
        "dropped/dev queries that are test queries": 1,
    }
    assert "such as 'question 45', 'question 51'" in caplog.text


def test_training_queries_without_a_relevant_passage_are_counted(
    wings: Path, tmp_path: Path
) -> None:
    write(wings / "corpus.jsonl", [{"_id": f"d{n}", "text": "x" * (n != 7)} for n in range(60)])
    rows = [(f"q{n}", f"d{n}", 1) for n in range(40)] + [("q41", "d3", 0), ("q5", "d5", 1)]
    write_qrels(wings, "train", rows)
    artifact, _ = prepare(tmp_path / "store", collection=str(wings))
    dropped = {name: n for name, n in artifact.counts.items() if name.startswith("dropped")}
    assert dropped == {
        "dropped/training judgements of empty passages": 1,
        "dropped/training queries without a relevant passage": 2,
        "dropped/collection/qrels/train.tsv/repeated judgement": 1,
    }
    assert artifact.counts["corpus/empty passages"] == 1


@pytest.mark.parametrize(
    ("shares", "name"), [((0.001, 0.1), "preference"), ((0.5, 0.001), "dev"), ((0.999, 0), "ret")]
)
def test_a_split_that_leaves_a_part_empty_is_refused(
    shares: tuple[float, float], name: str, wings: Path, tmp_path: Path
) -> None:
    options = {"preference_share": shares[0], "dev_share": shares[1]}
    with pytest.raises(DataError, match=f"no query is left in the {name}"):
        prepare(tmp_path / "store", collection=str(wings), **options)


@pytest.fixture
def triples(tmp_path: Path) -> Path:
    """Two sources; each query has two positives, and each positive two negatives."""
    folder = tmp_path / "triples"
    for source in ("nq", "fever"):
        rows = [
            {"query": f"Who is {n}?", "positive": f"{source} {n} {p}", "negative": f"no {n} {k}"}
            for n in range(40)
            for p in range(2)
            for k in range(2)
        ]
        write(folder / f"{source}.jsonl", rows)
    return folder


def test_triples_are_joined_by_query_and_positive(triples: Path, tmp_path: Path) -> None:
    artifact, tables = prepare(tmp_path / "store", collection="", triples=str(triples))
    assert set(tables) == {"preference", "retriever", "dev_queries", "dev_qrels", "dev_corpus"}
    splits = queries_of(tables)
    assert all(splits.values())
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == 80
    assert artifact.counts["preference/queries/nq"] == len(splits["preference"]) / 2
    rows = tables["preference"]
    keys = [(row["query_id"], row["positive_id"]) for row in rows]
    assert keys == sorted(keys)
    for row in rows:
        source, number, _ = row["positive"].split()
        assert row["query_id"].startswith(f"{source}-")
        assert (row["source"], row["query"]) == (source, f"Who is {number}?")
        assert sorted(row["negatives"]) == [f"no {number} 0", f"no {number} 1"]
        assert len(set(row["negative_ids"])) == 2


def test_one_query_is_in_one_part_whatever_its_source(triples: Path, tmp_path: Path) -> None:
    _, tables = prepare(tmp_path / "store", collection="", triples=str(triples))
    texts = [
        {row["query"] for row in tables[name]}
        for name in ("preference", "retriever", "dev_queries")
    ]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 40


def test_the_dev_part_of_triples_is_searched_in_its_own_passages(
    triples: Path, tmp_path: Path
) -> None:
    artifact, tables = prepare(tmp_path / "store", collection="", triples=str(triples))
    passages = {row["passage_id"]: row["text"] for row in tables["dev_corpus"]}
    assert list(passages) == sorted(passages)
    assert len(passages) == len(tables["dev_queries"]) // 2 * 6  # 2 sources x 2 positives + 2
    for row in tables["dev_qrels"]:
        assert passages[row["passage_id"]].startswith(row["query_id"].split("-")[0])
    assert all(row["cluster"] == row["query_id"] for row in tables["dev_queries"])
    assert artifact.counts["dev/judgements"] == 2 * artifact.counts["dev/queries"]


def test_ids_and_parts_of_triples_do_not_depend_on_their_position(
    triples: Path, tmp_path: Path
) -> None:
    _, before = prepare(tmp_path / "one", collection="", triples=str(triples))
    path = triples / "nq.jsonl"
    lines = path.read_text().splitlines()[::-1]
    new = json.dumps({"query": "New?", "positive": "new", "negative": "old"})
    path.write_text("\n".join([new, *lines]))
    _, after = prepare(tmp_path / "two", collection="", triples=str(triples))
    new_ids = {f"nq-{text_id('new?')}", text_id("new"), text_id("old")}
    for name, rows in before.items():
        assert [row for row in after[name] if not new_ids & set(map(str, row.values()))] == rows


def test_a_single_file_of_triples_can_be_named(triples: Path, tmp_path: Path) -> None:
    _, tables = prepare(tmp_path / "store", collection="", triples=str(triples / "nq.jsonl"))
    assert {row["source"] for row in tables["preference"]} == {"nq"}


def test_dropped_triples_are_counted_by_reason(wings: Path, triples: Path, tmp_path: Path) -> None:
    path = triples / "nq.jsonl"
    content = path.read_text()
    extra = [
        {"query": "who is  7?", "positive": "nq 7 0 ", "negative": " no 7 1"},  # again
        {"query": "Who is 8?", "positive": "nq 8 0", "negative": "nq 8 0"},  # the positive itself
        {"query": "Who is 9?", "positive": "nq 9 0", "negative": "nq 9 1"},  # another positive
        {"query": "question 44", "positive": "a", "negative": "b"},  # a test query
    ]
    path.write_text(content + "".join(json.dumps(row) + "\n" for row in extra))
    artifact, tables = prepare(tmp_path / "store", collection=str(wings), triples=str(triples))
    dropped = {name: n for name, n in artifact.counts.items() if name.startswith("dropped")}
    assert dropped == {
        "dropped/triples/nq.jsonl/repeated triple": 1,
        "dropped/negatives that are a positive of their query": 2,
        "dropped/training queries that are dev or test queries": 1,
    }
    assert (
        sum(len(tables[name]) for name in ("preference", "retriever")) + len(tables["dev_qrels"])
        == 2 * 2 * 40
    )
    for row in [*tables["preference"], *tables["retriever"]]:
        assert len(row["negatives"]) == 2
        assert row["positive"] not in row["negatives"]


def test_the_first_spelling_of_a_query_in_alphabetical_order_is_kept(
    triples: Path, tmp_path: Path
) -> None:
    (triples / "nq.jsonl").unlink()
    rows = [{"query": q, "positive": q} for q in ("What is it?", "WHAT is it?", "what is it?")]
    with (triples / "fever.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    _, tables = prepare(tmp_path / "store", collection="", triples=str(triples))
    found = {row["query"] for name in tables for row in tables[name] if "query" in row}
    assert {query for query in found if normalise(query) == "what is it?"} == {"WHAT is it?"}


def test_triples_with_a_collection_take_dev_from_it_if_it_has_dev_judgements(
    wings: Path, triples: Path, tmp_path: Path
) -> None:
    write_qrels(wings, "dev", [("q50", "d50", 1)])
    (wings / "qrels" / "train.tsv").unlink()
    _, tables = prepare(tmp_path / "store", collection=str(wings), triples=str(triples))
    assert [row["query_id"] for row in tables["dev_queries"]] == ["q50"]
    assert "dev_corpus" not in tables
    assert len(tables["preference"]) + len(tables["retriever"]) == 160


def test_the_collection_may_be_an_artifact(wings: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    with store.lock("demo_world-0") as work:
        folder = work / "out"
        folder.mkdir()
        wings.rename(folder / "collection")
        world = store.commit(full("demo_world-0"), folder, [], {"counts": {}})
    artifact, tables = prepare(tmp_path / "store", inputs={"world": world}, collection="demo")
    assert artifact.counts["corpus/passages"] == len(tables["corpus"]) == 60
    with pytest.raises(DataError, match="the demo world is missing"):
        prepare(tmp_path / "store", collection="demo")


def test_the_key_depends_on_content_not_on_place(wings: Path, tmp_path: Path) -> None:
    first, _ = prepare(tmp_path / "one", collection=str(wings))
    moved = wings.rename(tmp_path / "elsewhere")
    second, _ = prepare(tmp_path / "two", collection=str(moved))
    assert (first.key, first.digest) == (second.key, second.digest)
    other_seed, _ = prepare(tmp_path / "two", seed=1, collection=str(moved))
    assert other_seed.key != first.key
    assert other_seed.digest != first.digest
    with (moved / "queries.jsonl").open("a") as file:
        file.write('{"_id": "new", "text": "new"}\n')
    changed, _ = prepare(tmp_path / "two", collection=str(moved))
    assert changed.key != first.key
    assert changed.digest == first.digest  # nobody judged the new query


@pytest.mark.skipif(not (DATA / "scifact").exists(), reason="EXPANDR_TEST_DATA has no scifact")
def test_scifact_is_prepared_twice_with_the_same_digest(tmp_path: Path) -> None:
    first, tables = prepare(tmp_path / "one", collection=str(DATA / "scifact"))
    second, _ = prepare(tmp_path / "two", collection=str(DATA / "scifact"))
    assert first == second
    assert first.counts["corpus/passages"] == 5183
    assert first.counts["test/queries"] == len(tables["test_queries"]) == 300
    assert first.counts["test/judgements"] == 339
    leaked = first.counts["dropped/training queries that are dev or test queries"]
    assert leaked == 2  # claims that scifact has in train and in test
    assert sum(map(len, queries_of(tables).values())) == 809 - leaked


@pytest.mark.skipif(not (DATA / "cranfield").exists(), reason="EXPANDR_TEST_DATA has no cranfield")
def test_cranfield_has_no_training_queries_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.tsv is missing.*data.triples"):
        prepare(tmp_path, collection=str(DATA / "cranfield"))


@pytest.mark.skipif(
    not (DATA / "train_triples").exists(), reason="EXPANDR_TEST_DATA has no train_triples"
)
def test_cranfield_with_triples_keeps_its_two_empty_documents(tmp_path: Path) -> None:
    options = {"collection": str(DATA / "cranfield"), "triples": str(DATA / "train_triples")}
    artifact, tables = prepare(tmp_path, **options)
    empty = [row["passage_id"] for row in tables["corpus"] if not row["title"] + row["text"]]
    assert empty == ["471", "995"]
    assert artifact.counts["corpus/empty passages"] == 2
    assert artifact.counts["dropped/triples/scifact.jsonl/repeated triple"] == 1
    sources = {row["source"] for row in tables["preference"]}
    assert sources == {"scifact", "nfcorpus_norm", "stackfaq"}
