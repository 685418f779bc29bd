"""The engine transformers: a text depends on its prompt and seed alone, not on the batch."""

import json
import random
import shutil

import pytest
import torch

from expandr_core.errors import DataError
from expandr_core.generation.engine import Completion, Request
from expandr_core.generation.prompts import fit_prompt
from expandr_core.generation.transformers_engine import TransformersGenerator
from expandr_core.options.generation import SamplingOptions

TEMPERATURES = (0.8, 0.9, 1.0, 1.1, 0.0)
REQUESTS = [
    Request(
        "q2d",
        "why is text grey? " * (n % 4 + 1),
        "",
        tuple(range(10 * n, 10 * n + 5)),
        TEMPERATURES,
    )
    for n in range(8)
]


@pytest.fixture(scope="module")
def generator(llm_folder) -> TransformersGenerator:
    return TransformersGenerator(llm_folder, "cpu")


def sampling(**options) -> SamplingOptions:
    return SamplingOptions(**{"top_p": 0.95, "max_new_tokens": 24} | options)


def generated(generator, requests: list[Request], **options) -> dict[int, list[Completion]]:
    batches = generator.generate(requests, sampling(**options), 160)
    return {index: texts for batch in batches for index, texts in batch}


# Texts and batches


def test_texts_do_not_depend_on_the_batch_size(generator, monkeypatch):
    expected = generated(generator, REQUESTS)
    assert len({text.text for texts in expected.values() for text in texts}) > 30
    for batch_size in (1, 7, 16, 1000):
        monkeypatch.setattr(generator, "batch_size", batch_size)
        assert generated(generator, REQUESTS) == expected


def test_texts_do_not_depend_on_the_order_or_the_other_queries(generator):
    expected = generated(generator, REQUESTS)
    order = random.Random(0).sample(range(len(REQUESTS)), len(REQUESTS))
    shuffled = generated(generator, [REQUESTS[n] for n in order])
    assert {n: shuffled[place] for place, n in enumerate(order)} == expected
    alone = generated(generator, [REQUESTS[3]])
    assert alone[0] == expected[3]


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("generation_config.json", {"use_cache": False}),
        ("config.json", {"use_cache": False}),
        ("generation_config.json", {"do_sample": True, "temperature": 0.7, "top_k": 1}),
        ("generation_config.json", {"repetition_penalty": 1.3}),
        ("generation_config.json", {"no_repeat_ngram_size": 2}),
        ("generation_config.json", {"min_new_tokens": 24}),
        ("generation_config.json", {"suppress_tokens": [40, 50], "begin_suppress_tokens": [60]}),
        ("generation_config.json", {"forced_eos_token_id": 2, "forced_bos_token_id": 5}),
        ("generation_config.json", {"bad_words_ids": [[70]], "renormalize_logits": True}),
        ("generation_config.json", {"cache_implementation": "static"}),
        ("generation_config.json", {"cache_implementation": "dynamic"}),
        ("generation_config.json", {"stop_strings": ["e"], "guidance_scale": 2.0}),
        ("generation_config.json", {"num_beams": 3, "length_penalty": 2.0, "max_length": 20}),
        ("generation_config.json", {"num_return_sequences": 2, "max_time": 1e-9}),
        ("generation_config.json", {"prompt_lookup_num_tokens": 3, "custom_word": 1}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_only_the_end_tokens_are_taken_from_the_model_s_generation_config(
    llm_folder, generator, tmp_path, file, settings
):
    folder = shutil.copytree(llm_folder, tmp_path / "model")
    own = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(own | settings))
    expected = generated(generator, REQUESTS[:3])
    assert generated(TransformersGenerator(folder, "cpu"), REQUESTS[:3]) == expected


def test_the_ends_that_the_model_names_end_a_text(llm_folder, generator, tmp_path):
    folder = shutil.copytree(llm_folder, tmp_path / "model")
    path = folder / "generation_config.json"
    ends = [2, *range(100, 200)]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ends}))
    found = generated(TransformersGenerator(folder, "cpu"), REQUESTS[:3])
    assert found != generated(generator, REQUESTS[:3])
    assert any(text.tokens < 20 for texts in found.values() for text in texts)


def test_another_seed_writes_another_text(generator):
    one, other = (
        generated(generator, [Request("q2d", "why?", "", (seed,), (1.0,))])[0] for seed in (1, 2)
    )
    assert one != other


def test_temperature_zero_is_the_greedy_text_of_transformers(generator):
    for number, texts in generated(generator, REQUESTS[:4]).items():
        query = REQUESTS[number].query
        ids = torch.tensor([fit_prompt(generator.codec.tokenizer, "q2d", query, "", 160).ids])
        expected = generator.model.generate(
            input_ids=ids, max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=0
        )[0, ids.shape[1] :]
        text = generator.codec.tokenizer.decode(expected, skip_special_tokens=True)
        assert texts[TEMPERATURES.index(0.0)].text == text != ""


def test_a_text_is_finished_or_cut(generator):
    seeds = tuple(range(200))
    request = Request("q2d", "why?", "", seeds, (1.0,) * len(seeds))
    texts = generated(generator, [request], max_new_tokens=40, top_p=1.0)[0]
    stopped = [text for text in texts if text.finish_reason == "stop"]
    cut = [text for text in texts if text.finish_reason == "length"]
    assert stopped and cut
    assert all(text.tokens < 40 for text in stopped)
    assert all(text.tokens == 40 for text in cut)
    assert not any("<|" in text.text for text in texts)


def test_a_finished_text_is_the_beginning_of_the_longer_one(generator):
    """More room changes only the texts that were cut."""
    seeds = tuple(range(100))
    request = Request("q2d", "why?", "", seeds, (1.0,) * len(seeds))
    short, long = (
        generated(generator, [request], max_new_tokens=room, top_p=1.0)[0] for room in (20, 40)
    )
    for before, after in zip(short, long, strict=True):
        if before.finish_reason == "stop":
            assert before == after
        else:
            assert after.tokens >= before.tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_whose_logits_are_not_finite_writes_nothing(llm_folder, temperature):
    broken = TransformersGenerator(llm_folder, "cpu")
    with torch.no_grad():
        broken.model.get_input_embeddings().weight[7] = torch.nan  # the head is tied to it
    request = Request("q2d", "why is text grey?", "", (1,), (temperature,))
    with pytest.raises(DataError, match=r"logits are not finite.*weights are broken"):
        generated(broken, [request])


def test_more_tokens_than_the_model_can_hold_are_refused(generator):
    with pytest.raises(DataError, match="exceeds the model's context of 512"):
        list(generator.generate(REQUESTS, sampling(max_new_tokens=400), 160))
