"""Texts for the tiny LLM from any corpus, in a sample that need not fit into memory."""

from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_keys import full

from expandr_core.demo.corpus_sample import Passage, sample_passages
from expandr_core.errors import DataError
from expandr_core.generation.prompts import render_prompt
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages.collection_texts import (
    CollectionTextsOptions,
    answer_chat,
    make_texts,
    passage_chat,
)
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

MOON = Passage("Moon dust", "It is grey. It is fine.")
UNTITLED = Passage("", "Wings lift. They are thin.")


def write_corpus(path: Path, rows: list[tuple[str, str]]) -> Path:
    columns = {
        "passage_id": [f"p{number}" for number in range(len(rows))],
        "title": [title for title, _ in rows],
        "text": [text for _, text in rows],
    }
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def run_texts(folder: Path, rows: list[tuple[str, str]], options: CollectionTextsOptions):
    store = Store(str(folder))
    work = folder / "corpus"
    work.mkdir()
    write_corpus(work / "corpus.parquet", rows)
    corpus = store.commit(full("prepare-0"), work, [], {"counts": {}}).at("corpus.parquet")
    spec = make_spec("collection_texts", options, {"corpus": corpus})
    artifact: Artifact = run_stage(spec, store, lambda *_: None)
    return artifact, pq.read_table(store.local(artifact) / "texts.parquet").to_pylist()


def test_the_title_asks_for_the_passage():
    assert passage_chat(MOON, 100) == (render_prompt("q2d", "Moon dust"), MOON.text)


def test_the_first_sentence_asks_where_there_is_no_title():
    assert passage_chat(UNTITLED, 100) == (render_prompt("q2d", "Wings lift."), UNTITLED.text)


def test_the_first_sentence_answers_from_the_whole_passage():
    prompt = render_prompt("q2a", "Moon dust", "Moon dust It is grey. It is fine.")
    assert answer_chat(MOON, 100) == (prompt, "It is grey.")


def test_a_title_without_text_is_shown_itself():
    assert passage_chat(Passage("Moon dust", ""), 100)[1] == "Moon dust"
    assert answer_chat(Passage("Moon dust", ""), 100)[1] == "Moon dust"


def test_every_passage_has_its_turn_before_one_comes_again():
    passages = [Passage(f"t{number}", f"Text {number}.") for number in range(10)]
    options = CollectionTextsOptions(rows=30, passage_chats=0, answer_chats=0)
    texts = [text for _, _, text in make_texts(passages, options, Random(0))]
    for start in (0, 10, 20):
        assert sorted(texts[start : start + 10]) == sorted(passage.whole for passage in passages)


def test_a_sample_of_a_corpus_is_drawn_from_all_its_row_groups(tmp_path: Path):
    rows = [(f"t{number}", "text") for number in range(50)]
    corpus = write_corpus(tmp_path / "corpus.parquet", rows)
    drawn = [int(p.title[1:]) for p in sample_passages(corpus, 20, Random(0))]
    assert len(set(drawn)) == 20
    assert drawn == sorted(drawn)
    assert drawn[0] < 10 and drawn[-1] >= 40


def test_a_sample_larger_than_the_corpus_is_the_corpus_without_empty_passages(tmp_path: Path):
    rows = [("", "a"), ("", ""), ("b", "")] * 5
    corpus = write_corpus(tmp_path / "corpus.parquet", rows)
    expected = [Passage("", "a"), Passage("b", "")] * 5
    assert sample_passages(corpus, 1000, Random(0)) == expected


def test_the_stage_writes_the_wanted_number_of_texts_of_both_kinds(tmp_path: Path):
    rows = [("Moon dust", "It is grey. It is fine."), ("", "Wings lift. They are thin."), ("", "")]
    artifact, texts = run_texts(tmp_path, rows, CollectionTextsOptions(rows=640))
    chats = [row for row in texts if row["kind"] == "chat"]
    assert len(texts) == artifact.counts["texts"] == 640
    assert len(chats) == artifact.counts["chats"]
    assert 0.1 < len(chats) / 640 < 0.6
    assert all(bool(row["prompt"]) == (row["kind"] == "chat") for row in texts)
    assert all(row["text"] for row in texts)


def test_a_corpus_without_text_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no passage with text"):
        run_texts(tmp_path, [("", ""), ("", "")], CollectionTextsOptions(rows=16))
