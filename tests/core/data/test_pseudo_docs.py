"""The release's triples bring expansions: these are training data like expansions of our own."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import retriever_world as world
from flat_options import flat
from released import TRIPLES, write_lines
from tiny_models import save_retriever

from expandr_core.data.formats.triples import text_id
from expandr_core.data.split import normalise
from expandr_core.errors import DataError
from expandr_core.options.data import DataOptions
from expandr_core.options.retriever import EncodingOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import import_expansions, train_retriever
from expandr_core.stages.prepare import source_digests
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

TRAINING = {
    "learning_rate": 0.03, "epochs": 2, "batch_size": 4, "hard_negatives": 1,
    "contrastive_temperature": 0.05, "expansion_weight": 0.5,
    "encoding": EncodingOptions(max_tokens=32),
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def prepared(store: Store, rows: list[dict[str, Any]], **options: Any) -> Artifact:
    path = write_lines(store.scratch / f"{len(rows)}" / "nq.jsonl", rows)
    shares = {"preference_share": 0.4, "dev_share": 0.1}
    data = DataOptions(collection="", triples=str(path), **shares | options)
    spec = make_spec("prepare", data, sources=source_digests(data))
    return run_stage(spec, store, no_progress)


def rows_of(store: Store, artifact: Artifact, name: str) -> list[dict[str, Any]]:
    return pq.read_table(store.local(artifact) / name).to_pylist()


def imported(store: Store, made: Artifact, samples: int) -> Artifact:
    inputs = {"pseudo_docs": made.at("pseudo_docs.parquet")}
    spec = make_spec("import_expansions", import_expansions.OPTIONS(samples=samples), inputs)
    return run_stage(spec, store, no_progress)


def texts_of(store: Store, expansions: Artifact) -> dict[str, list[str]]:
    [shard] = store.shards(expansions)
    found: dict[str, list[str]] = {}
    for row in rows_of(store, shard, "expansions.parquet"):
        assert row["sample"] == len(found.setdefault(row["query_id"], []))
        found[row["query_id"]].append(row["text"])
    return found


def query_id(query: str) -> str:
    return f"nq-{text_id(normalise(query))}"


def expected(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The texts of each query as they come, each once, without lead-ins."""
    lead = "Here is a passage to answer the question:\n\n"
    found: dict[str, list[str]] = {}
    for row in rows:
        texts = found.setdefault(query_id(row["query"]), [])
        text = row["pseudo_doc"].removeprefix(lead)
        if text not in texts:
            texts.append(text)
    return found


def test_a_query_s_pseudo_docs_are_numbered_as_they_come(store):
    made = prepared(store, [*TRIPLES, TRIPLES[4]])
    assert set(made.files) > {"retriever.parquet", "pseudo_docs.parquet"}
    known = expected(TRIPLES)
    queries = {row["query_id"] for row in rows_of(store, made, "retriever.parquet")}
    assert 5 < len(queries) < 15
    rows = rows_of(store, made, "pseudo_docs.parquet")
    assert [(row["query_id"], row["sample"], row["text"]) for row in rows] == [
        (query, number, text)
        for query in sorted(queries)
        for number, text in enumerate(known[query])
    ]
    assert made.counts["pseudo_docs/kept"] == len(rows)
    leads = [
        row for n, row in enumerate(TRIPLES) if n % 5 == 0 and query_id(row["query"]) in queries
    ]
    assert made.counts["pseudo_docs/lead-ins removed"] == len(leads) > 0
    again = query_id(TRIPLES[4]["query"]) in queries
    assert made.counts.get("pseudo_docs/repeated", 0) == again


def test_several_positives_become_several_examples(store):
    rows = rows_of(store, prepared(store, TRIPLES), "retriever.parquet")
    positives = {(row["query"], row["positive"]) for row in rows}
    queries = {row["query"] for row in rows}
    numbers = sorted(int(query.split()[3]) for query in queries)
    assert positives == {
        (f"why is thing {n} grey?", text)
        for n in numbers
        for text in (f"thing {n} is of grey text", f"text {n} is grey")
    }
    assert all(len(row["negatives"]) == 1 for row in rows if row["positive"].startswith("thing"))


def test_every_query_gets_as_many_samples_as_training_asks_for(store):
    """Every third query has one text, all others two: one is then repeated, and two begin again."""
    rows = [row for n, row in enumerate(TRIPLES) if n % 6 < 5]
    made = prepared(store, rows)
    queries = {row["query_id"] for row in rows_of(store, made, "retriever.parquet")}
    known = {query: texts for query, texts in expected(rows).items() if query in queries}
    assert {len(texts) for texts in known.values()} == {1, 2}
    assert texts_of(store, imported(store, made, 1)) == {id_: own[:1] for id_, own in known.items()}
    three = imported(store, made, 3)
    assert texts_of(store, three) == {id_: (own * 3)[:3] for id_, own in known.items()}
    fewer = "queries with fewer texts, repeated"
    assert three.counts[fewer] == three.counts["queries"] == len(known)
    ones = sum(len(texts) == 1 for texts in known.values())
    assert imported(store, made, 2).counts[fewer] == ones


def test_a_query_without_a_text_is_trained_without_expansion(store):
    rows = [dict(row) for row in TRIPLES]
    for number, row in enumerate(rows):
        if number % 6 == 0:
            row["pseudo_doc"] = "Here is a passage:\n"
        elif number % 6 == 1:
            del row["pseudo_doc"]
    made = prepared(store, rows)
    texts = texts_of(store, imported(store, made, 1))
    without = {query_id(row["query"]) for row in rows[::6]} & texts.keys()
    assert 0 < len(without) < len(texts)
    assert {query for query, own in texts.items() if own == [""]} == without
    assert made.counts["pseudo_docs/empty"] == len(without)
    assert imported(store, made, 1).counts["empty"] == len(without)


def test_pseudo_docs_can_be_ignored_and_are_then_not_read(store):
    made, used = prepared(store, TRIPLES, pseudo_docs="ignore"), prepared(store, TRIPLES)
    assert made.key != used.key
    assert "pseudo_docs.parquet" not in made.files
    assert used.files.items() >= made.files.items()
    assert made.counts["pseudo_docs/ignored"] == used.counts["pseudo_docs/kept"]


def test_triples_whose_query_is_the_expansion_are_triples_like_others(store):
    rows = [{**row, "query": f"{row['query']} {row['pseudo_doc']}"} for row in TRIPLES]
    for row in rows:
        del row["pseudo_doc"]
    made = prepared(store, rows)
    assert "pseudo_docs.parquet" not in made.files
    assert made.counts["retriever/examples"] > 5


def test_a_pseudo_doc_that_is_no_text_is_refused(store):
    with pytest.raises(DataError, match=r"nq\.jsonl:1: pseudo_doc is not a string"):
        prepared(store, [TRIPLES[0] | {"pseudo_doc": ["a", "b"]}])


@pytest.mark.parametrize("samples", [1, 2])
def test_training_on_imported_rows_equals_training_on_our_expansions_of_the_same_triples(
    store, tmp_path, samples
):
    made = prepared(store, TRIPLES)
    plain = [{name: row[name] for name in ("query", "pos", "neg")} for row in TRIPLES]
    other = Store(str(tmp_path / "other"))
    without = prepared(other, plain)
    queries = {row["query_id"] for row in rows_of(other, without, "retriever.parquet")}
    known = expected(TRIPLES)
    written = [
        (query, sample, known[query][sample])
        for query in sorted(queries, reverse=True)
        for sample in range(samples)
    ]
    folders = [save_retriever(each.scratch / "model") for each in (store, other)]
    expansions = [imported(store, made, samples), world.put_expansions(other, "expand-1", written)]
    trained = []
    for each, examples, folder, texts in zip(
        (store, other), (made, without), folders, expansions, strict=True
    ):
        inputs = {
            "retriever": world.put(each, "import_model-1", folder),
            "examples": examples.at("retriever.parquet"),
            "expansions": texts,
        }
        options = flat(train_retriever.OPTIONS, **TRAINING, expansions_per_query=samples)
        spec = make_spec("train_retriever", options, inputs, device="cpu")
        trained.append(run_stage(spec, each, no_progress))
    name = "model.safetensors"
    assert trained[0].files[name] == trained[1].files[name]
    assert trained[0].counts == trained[1].counts
