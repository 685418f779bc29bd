"""Thoughts before a text: left out, counted, and nothing where they were cut."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_world import put
from store_keys import full
from tiny_models import ASSISTANT, EOS, TEMPLATE, make_tokenizer, save_parrot

from expandr_core.errors import DataError
from expandr_core.generation.engine import Codec
from expandr_core.generation.pair_tokens import preference_ids
from expandr_core.generation.thoughts import MARKERS, remove_thoughts
from expandr_core.options.generation import ChatOptions, PromptOptions, SamplingOptions
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, run_stage
from expandr_core.stages import expand
from expandr_core.store.store import Store

OPENED = TEMPLATE.replace("<|assistant|>", "<|assistant|><think>\n")
CHOICE = TEMPLATE.replace(
    "<|assistant|>",
    "<|assistant|>{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
)


@pytest.mark.parametrize(("begin", "end"), MARKERS.items())
@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("BEGIN\nhm\nEND\n\nDust is grey.", "Dust is grey."),
        (" \nBEGINENDDust is grey.", "Dust is grey."),
        ("BEGINoneENDBEGIN two END Dust is grey.", "Dust is grey."),
        ("BEGIN\nhm, dust", ""),
        ("BEGIN hm END", ""),
        ("BEGIN hm END Dust, BEGIN so ENDthey say.", "Dust, BEGIN so ENDthey say."),
    ],
)
def test_a_leading_block_is_removed(begin, end, text, rest):
    text, rest = (each.replace("BEGIN", begin).replace("END", end) for each in (text, rest))
    assert remove_thoughts(text) == (rest, True)


@pytest.mark.parametrize("text", ["Dust.", "", "  Dust <think>is</think> grey", "no </think> yes"])
def test_a_text_with_another_beginning_stays(text):
    assert remove_thoughts(text) == (text, False)


def made_tokenizer(template: str, special: bool = False):
    tokenizer = make_tokenizer(template)
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    ("template", "chat", "written", "text"),
    [
        (TEMPLATE, {}, "<think>\nhm\n</think>\n\nDust.", "Dust."),
        (TEMPLATE, {}, "<think>\nhm", ""),
        (TEMPLATE, {}, "hm\n</think>\n\nDust.", "Dust."),  # a server that opens them unseen
        (OPENED, {}, "hm\n</think>\n\nDust.", "Dust."),
        (OPENED, {}, "hm, dust", ""),
        (CHOICE, {}, "<think>hm</think>Dust.", "Dust."),
        (CHOICE, {"enable_thinking": False}, "Dust.</think> Yes.", "Dust.</think> Yes."),
    ],
)
def test_every_engine_s_text_is_what_comes_after_the_thoughts(
    tmp_path, special, template, chat, written, text
):
    tokenizer = made_tokenizer(template, special)
    save_parrot(tmp_path, tokenizer, [ASSISTANT, EOS])
    codec = Codec(tmp_path, ChatOptions(template=chat))
    ids = tokenizer.encode(written, add_special_tokens=False)
    completion = codec.completion([*ids, EOS])
    assert (completion.text, completion.tokens) == (text, len(ids))
    assert completion.thoughts == (text != written)
    assert codec.answer(written) == (text, text != written)


def expanded(folder, written: str):
    tokenizer = made_tokenizer(TEMPLATE)
    ids = tokenizer.encode(written, add_special_tokens=False)
    store = Store(str(folder / "store"))
    model = save_parrot(store.scratch / "llm", tokenizer, [ASSISTANT, *ids, EOS])
    row = {"query_id": "q", "query": "why?", "positive_id": "p", "positive": ""}
    inputs = {
        "llm": store.commit(full("tiny_llm-1"), model, [], {"counts": {}}),
        "queries": put(store, "prepare-1", {"preference.parquet": pa.Table.from_pylist([row])}).at(
            "preference.parquet"
        ),
    }
    options = expand.OPTIONS(
        prompt=PromptOptions(max_tokens=300),
        sampling=SamplingOptions(sampling_temperatures=(0.0,), max_new_tokens=12),
        queries_per_shard=4,
    )
    made = run_stage(make_spec("expand", options, inputs, device="cpu"), store, no_progress)
    [part] = store.shards(made)
    [row] = pq.read_table(store.local(part) / "expansions.parquet").to_pylist()
    return row["text"], made.counts


def test_thoughts_are_counted_and_are_no_expansion(tmp_path):
    text, counts = expanded(tmp_path, "<think>hm</think>wing")
    assert (text, counts["thoughts"], counts["empty"]) == ("wing", 1, 0)


def test_a_text_of_cut_thoughts_alone_is_empty(tmp_path):
    with pytest.raises(DataError, match=r"all 1 texts .* are empty.*the model only thinks"):
        expanded(tmp_path, "<think>abcdefghijklm")


def test_without_thoughts_none_are_counted(tmp_path):
    text, counts = expanded(tmp_path, "wing")
    assert text == "wing" and "thoughts" not in counts


def test_where_the_prompt_opens_thoughts_dpo_s_texts_come_after_their_end(tmp_path):
    row = {"query_id": "q", "query": "why?", "chosen_text": "Dust.", "rejected_text": "Ash."}
    row |= {"chosen_finish_reason": "stop", "rejected_finish_reason": "length"}
    tokenizer = made_tokenizer(OPENED)
    ids = preference_ids(tokenizer, row, "q2d", max_prompt_tokens=1024, max_tokens=1024)
    assert str(tokenizer.decode(ids["prompt_ids"])).endswith("<|assistant|><think>\n")
    assert tokenizer.decode(ids["chosen_ids"]) == "\n</think>\n\nDust.<|eos|>"
    assert tokenizer.decode(ids["rejected_ids"]) == "\n</think>\n\nAsh."
    save_parrot(tmp_path, tokenizer, [ASSISTANT, EOS])
    assert Codec(tmp_path).completion(ids["chosen_ids"]).text == "Dust."
