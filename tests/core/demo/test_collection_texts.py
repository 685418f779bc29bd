"""Texts for the tiny LLM from any corpus, in a sample that need not fit into memory."""

from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_keys import full

from expandr_core.demo.corpus_sample import sample_passages
from expandr_core.demo.mixing import BLOCK, BLOCKS, Text, turns
from expandr_core.errors import DataError
from expandr_core.generation.prompts import render_prompt
from expandr_core.records import Passage
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages.collection_texts import LONGEST, OPTIONS, answer_chat, passage_chat
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store

MOON = Passage("p1", "Moon dust", "It is grey. It is fine.")
UNTITLED = Passage("p2", "", "Wings lift. They are thin.")


def write_corpus(path: Path, rows: list[tuple[str, str]]) -> Path:
    columns = {
        "passage_id": [f"p{number}" for number in range(len(rows))],
        "title": [title for title, _ in rows],
        "text": [text for _, text in rows],
    }
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def run_texts(folder: Path, rows: list[tuple[str, str]]):
    store = Store(str(folder))
    work = folder / "corpus"
    work.mkdir()
    write_corpus(work / "corpus.parquet", rows)
    corpus = store.commit(full("prepare-0"), work, [], {"counts": {}}).at("corpus.parquet")
    spec = make_spec("collection_texts", OPTIONS(), {"corpus": corpus})
    artifact: Artifact = run_stage(spec, store, no_progress)
    return artifact, pq.read_table(store.local(artifact) / "texts.parquet").to_pylist()


def test_the_title_asks_for_the_passage():
    assert passage_chat(MOON) == Text("chat", render_prompt("q2d", "Moon dust"), MOON.text)


def test_the_first_sentence_asks_where_there_is_no_title():
    prompt = render_prompt("q2d", "Wings lift.")
    assert passage_chat(UNTITLED) == Text("chat", prompt, UNTITLED.text)


def test_the_first_sentence_answers_from_the_whole_passage():
    prompt = render_prompt("q2a", "Moon dust", "Moon dust It is grey. It is fine.")
    assert answer_chat(MOON) == Text("chat", prompt, "It is grey.")


def test_a_title_without_text_is_shown_itself():
    assert passage_chat(MOON._replace(text="")).text == "Moon dust"
    assert answer_chat(MOON._replace(text="")).text == "Moon dust"


def test_a_long_passage_is_cut_in_chats():
    words = [f"w{number}" for number in range(LONGEST + 9)]
    long = Passage("p3", "Moon dust", " ".join(words))
    assert passage_chat(long).text.split() == words[:LONGEST]
    assert answer_chat(long).text.split() == words[:LONGEST]
    assert words[LONGEST] not in answer_chat(long).prompt.split()


def test_every_passage_has_its_turn_before_any_comes_again():
    upcoming = turns(range(10), Random(0))
    orders = [[next(upcoming) for _ in range(10)] for _ in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


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
    passages = [(title, text) for _, title, text in sample_passages(corpus, 1000, Random(0))]
    assert passages == [("", "a"), ("b", "")] * 5


def test_the_stage_writes_texts_of_both_kinds(tmp_path: Path):
    rows = [("Moon dust", "It is grey. It is fine."), ("", "Wings lift. They are thin."), ("", "")]
    artifact, texts = run_texts(tmp_path, rows)
    chats = [row for row in texts if row["kind"] == "chat"]
    assert len(texts) == artifact.counts["texts"] == BLOCK * BLOCKS
    assert len(chats) == artifact.counts["chats"]
    assert len(chats) / len(texts) == pytest.approx(0.33, abs=0.05)
    assert all(bool(row["prompt"]) == (row["kind"] == "chat") for row in texts)
    assert all(row["text"] for row in texts)


def test_a_corpus_without_text_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no passage with text"):
        run_texts(tmp_path, [("", ""), ("", "")])
