"""The tiny LLM: what it learns from, that it loads like any other, and that a kill costs nothing."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from store_keys import full
from transformers import AutoModelForCausalLM, AutoTokenizer

from expandr_core.errors import DataError
from expandr_core.generation.prompts import prompt_ids, render_prompt, turn_end_id
from expandr_core.options.generation import TinyLLMOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages.tiny_llm import (
    BEGIN,
    END,
    NOT_LEARNT,
    _multiplies_bfloat16,
    make_examples,
    train_tokenizer,
)
from expandr_core.store.artifacts import StageSpec
from expandr_core.store.store import Store

OPTIONS = TinyLLMOptions(
    vocabulary=400, hidden_size=32, layers=1, steps=12, batch_size=4, max_tokens=64,
    checkpoint_steps=5,
)  # fmt: skip
CHAT = {"kind": "chat", "prompt": render_prompt("q2d", "is dewcap bad"), "text": "Dewcap is mild."}
TEXT = {"kind": "text", "prompt": "", "text": "Dewcap, properly kadolis, is a herb of marshes."}
ROWS = [CHAT, TEXT, TEXT, CHAT, TEXT] * 4
TOKENIZER = train_tokenizer(ROWS, 400)


def make_store(folder: Path, rows: list[dict[str, str]] = ROWS) -> tuple[Store, StageSpec]:
    """Return a store with the texts, and the stage that reads them."""
    store = Store(str(folder / "store"))
    work = folder / "texts"
    work.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), work / "texts.parquet")
    texts = store.commit(full("collection_texts-0"), work, [], {"counts": {}}).at("texts.parquet")
    return store, make_spec("tiny_llm", OPTIONS, {"texts": texts}, device="cpu")


def test_of_a_chat_only_the_answer_is_learnt():
    [example] = make_examples([CHAT], TOKENIZER, 200)
    prompt = prompt_ids(TOKENIZER, CHAT["prompt"])
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][: len(prompt)] == [NOT_LEARNT] * len(prompt)
    answer = example["labels"][len(prompt) :]
    assert answer == example["input_ids"][len(prompt) :]
    assert TOKENIZER.decode(answer) == "Dewcap is mild.<|end|>"


def test_of_a_text_everything_is_learnt():
    [example] = make_examples([TEXT], TOKENIZER, 200)
    assert example["labels"] == example["input_ids"]
    assert TOKENIZER.decode(example["input_ids"]) == f"<|begin|>{TEXT['text']}<|end|>"


def test_a_long_text_is_cut_into_pieces_without_loss():
    text = " ".join(f"word{number}" for number in range(100))
    pieces = list(make_examples([TEXT | {"text": text}], TOKENIZER, 50))
    assert [piece["input_ids"][0] for piece in pieces] == [BEGIN] * len(pieces)
    assert max(len(piece["input_ids"]) for piece in pieces) == 50
    joined = [token for piece in pieces for token in piece["input_ids"][1:]]
    assert joined[-1] == END and END not in joined[:-1]
    assert TOKENIZER.decode(joined[:-1]) == text


def test_a_chat_whose_prompt_fills_the_window_is_left_out():
    length = len(prompt_ids(TOKENIZER, CHAT["prompt"]))
    assert list(make_examples([CHAT], TOKENIZER, length)) == []
    assert len(list(make_examples([CHAT], TOKENIZER, length + 1))) == 1


def test_words_of_the_chat_template_in_a_text_stay_words():
    [example] = make_examples([TEXT | {"text": "<|end|> of <|user|>"}], TOKENIZER, 200)
    assert example["input_ids"].count(END) == 1


def test_the_model_loads_like_any_other_and_has_learnt_the_format(tmp_path: Path):
    store, spec = make_store(tmp_path)
    folder = store.local(run_stage(spec, store, no_progress))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = prompt_ids(tokenizer, "is dewcap bad")
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert turn_end_id(tokenizer) == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert model(torch.tensor([prompt])).logits.shape[-1] == len(tokenizer)
    assert not list(folder.rglob("*.bin")) and list(folder.glob("*.safetensors"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 has no other


def test_training_lowers_the_loss(tmp_path: Path):
    store, spec = make_store(tmp_path)
    folder = store.local(run_stage(spec, store, no_progress))
    trained = AutoModelForCausalLM.from_pretrained(folder)
    untrained = AutoModelForCausalLM.from_config(trained.config)
    [example] = make_examples([TEXT], AutoTokenizer.from_pretrained(folder), 64)
    ids = torch.tensor([example["input_ids"]])
    assert trained(ids, labels=ids).loss < untrained(ids, labels=ids).loss - 1


def test_a_narrow_model_is_trained_in_one_thread_if_in_bfloat16(tmp_path: Path):
    store, spec = make_store(tmp_path)
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(3)
    try:
        run_stage(spec, store, lambda done, total, unit: seen.add(torch.get_num_threads()))
        assert seen == ({1} if _multiplies_bfloat16() else {3})
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_killed_training_goes_on_and_gives_the_same_bytes(tmp_path: Path):
    store, spec = make_store(tmp_path / "whole")
    whole = run_stage(spec, store, no_progress)
    store, spec = make_store(tmp_path / "killed")
    seen: list[int] = []

    def kill_at_step_8(done: int, total: int, unit: str) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(spec, store, kill_at_step_8)
    resumed = run_stage(spec, store, lambda done, total, unit: seen.append(done))
    assert min(seen) == 5
    assert resumed.files == whole.files
    losses = [each.counts["final_loss"] for each in (whole, resumed)]
    assert losses[0] == losses[1] > 0


def test_texts_that_cannot_be_used_are_refused(tmp_path: Path):
    store, spec = make_store(tmp_path, [TEXT | {"text": ""}] * 3)
    with pytest.raises(DataError, match="none of the 3 texts"):
        run_stage(spec, store, no_progress)
