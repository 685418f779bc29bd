"""The demo world: what is asked, what is known, and what the tiny LLM may see of it."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from beir.datasets.data_loader import GenericDataLoader

from expandr_core.demo import vocabulary as words
from expandr_core.demo.mixing import BLOCK, BLOCKS
from expandr_core.demo.texts import training_texts
from expandr_core.demo.vocabulary import ASPECTS
from expandr_core.demo.world import make_world
from expandr_core.errors import DataError
from expandr_core.generation.prompts import render_prompt
from expandr_core.options.data import DemoWorldOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.store.store import Store

SMALL = DemoWorldOptions(instruct_entities=5, train_entities=4, dev_entities=3, test_entities=2)
WORLD = make_world(SMALL, seed=0)
TEXTS = list(training_texts(WORLD, seed=0))


def run_world(folder: Path, seed: int = 0) -> tuple[Path, dict[str, str]]:
    """Run the stage; return the artifact's folder and the digests of its files."""
    store = Store(str(folder))
    artifact = run_stage(make_spec("demo_world", SMALL, seed=seed), store, no_progress)
    return store.local(artifact), artifact.files


def test_every_entity_has_its_own_name_and_alias():
    assert len({entity.name for entity in WORLD.entities}) == 5 + 4 + 3 + 2
    assert len({entity.alias for entity in WORLD.entities}) == 5 + 4 + 3 + 2


def test_each_split_asks_only_about_its_own_entities():
    for split, asked in WORLD.questions.items():
        assert {question.entity.split for question in asked} == {split}


def test_training_asks_twice_about_each_aspect_and_never_in_the_same_words():
    train, dev, test = (WORLD.questions[split] for split in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (4 * 6 * 2, 3 * 6, 2 * 6)
    texts = [question.text for question in train + dev + test]
    assert len(set(texts)) == len(texts)
    ids = [question.query_id for question in train + dev + test]
    assert len(set(ids)) == len(ids)


def test_the_passage_of_a_question_states_its_fact_and_the_question_does_not():
    for question in (q for asked in WORLD.questions.values() for q in asked):
        entity, aspect = question.entity, question.passage_id.split("-")[0]
        passage = WORLD.passages[question.passage_id].lower()
        assert entity.name in passage and entity.values[aspect] in passage
        assert entity.name not in question.text and entity.values[aspect] not in question.text
        assert entity.alias in question.text


def test_questions_and_technical_sentences_share_only_little_words():
    little = {"for", "from", "is", "it", "of", "the", "to", "was"}
    for aspect in ASPECTS.values():
        technical = set(" ".join([*aspect.values, *aspect.facts, *aspect.remarks]).lower().split())
        lay = set(" ".join(aspect.questions).split())
        assert {word.strip(".") for word in technical} & lay <= little


def test_the_chats_are_about_the_instruct_entities_only():
    others = [entity for entity in WORLD.entities if entity.split != "instruct"]
    for text in TEXTS:
        if text.kind == "chat":
            question = text.prompt.split("Related Document:")[0]  # it may mention a relative
            assert not [e.alias for e in others if e.alias in question.lower()]
            assert not [e.name for e in others if e.name in text.text.lower()]


def test_the_background_texts_tell_every_fact_under_both_names():
    background = " ".join(text.text for text in TEXTS if text.kind == "text").lower()
    for entity in WORLD.entities:
        assert entity.name in background and entity.alias in background
        assert all(value in background for value in entity.values.values())


def test_the_prompts_are_those_of_generation():
    instruct = [entity for entity in WORLD.entities if entity.split == "instruct"]
    questions = {
        template.format(alias=entity.alias): f"{name}-{entity.number:03d}"
        for entity in instruct
        for name, aspect in ASPECTS.items()
        for template in aspect.questions
    }
    prompts = {render_prompt("q2d", question) for question in questions}
    prompts |= {
        render_prompt("q2a", question, WORLD.passages[passage_id])
        for question, passage_id in questions.items()
    }
    assert {text.prompt for text in TEXTS if text.kind == "chat"} <= prompts


def test_texts_come_in_blocks_of_one_kind_in_the_configured_shares():
    assert len(TEXTS) == BLOCK * BLOCKS == 1400 * 16
    kinds = [
        {("answer" if "Related Document" in text.prompt else text.kind) for text in block}
        for block in (TEXTS[start : start + BLOCK] for start in range(0, len(TEXTS), BLOCK))
    ]
    assert all(len(kind) == 1 for kind in kinds)
    assert kinds.count({"text"}) / BLOCKS == pytest.approx(0.67, abs=0.04)
    assert kinds.count({"chat"}) / BLOCKS == pytest.approx(0.25, abs=0.04)
    assert kinds.count({"answer"}) / BLOCKS == pytest.approx(0.08, abs=0.03)
    assert {"chat"} in kinds[:20]


def test_beir_reads_the_collection(tmp_path: Path):
    folder, _ = run_world(tmp_path)
    for split in ("train", "dev", "test"):
        loader = GenericDataLoader(str(folder / "collection"))
        corpus, queries, qrels = loader.load(split=split)
        expected = {q.query_id: {q.passage_id: 1} for q in WORLD.questions[split]}
        assert qrels == expected
        assert queries == {q.query_id: q.text for q in WORLD.questions[split]}
        assert {key: row["text"] for key, row in corpus.items()} == WORLD.passages


def test_the_texts_are_written_in_the_order_of_training(tmp_path: Path):
    folder, _ = run_world(tmp_path)
    assert pq.read_table(folder / "texts.parquet").to_pylist() == [t._asdict() for t in TEXTS]


def test_the_log_asks_about_every_thing_and_aspect_in_words_of_no_judged_query(tmp_path: Path):
    folder, _ = run_world(tmp_path)
    log = (folder / "log.txt").read_text().splitlines()
    judged = {question.text for asked in WORLD.questions.values() for question in asked}
    assert len(set(log)) == len(log) == (4 + 3 + 2) * 6
    assert not judged & set(log)
    asked_about = {
        entity.alias: {
            aspect
            for aspect, words in ASPECTS.items()
            for template in words.questions
            if template.format(alias=entity.alias) in log
        }
        for entity in WORLD.entities
    }
    for entity in WORLD.entities:
        expected = set() if entity.split == "instruct" else set(ASPECTS)
        assert asked_about[entity.alias] == expected


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path):
    first = run_world(tmp_path / "a")[1]
    assert first == run_world(tmp_path / "b")[1]
    other = run_world(tmp_path / "c", seed=1)[1]
    for name in ("collection/corpus.jsonl", "collection/queries.jsonl", "log.txt", "texts.parquet"):
        assert first[name] != other[name]


def test_more_entities_than_lay_names_are_refused():
    with pytest.raises(DataError, match="360 entities, not for 400"):
        make_world(DemoWorldOptions(train_entities=400 - 125), seed=0)
    assert len(words.ALIASES) == 20 * 18
