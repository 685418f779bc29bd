"""Exported models behave in plain libraries as they were measured: prompts, ends, sampling, lengths."""

import json
import shutil

import numpy as np
import pytest
from anchordr_world import SENTENCES, make_anchordr, train_pieces

from expandr_core.encoders.encode import Encoder
from expandr_core.encoders.load import load_sentence_model
from expandr_core.exports.models import export_llm, export_retriever
from expandr_core.generation.chat_templates import chat_options, load_tokenizer, template_of
from expandr_core.generation.prompts import prompt_ids
from expandr_core.options.loop import JointLoopOptions
from expandr_core.options.retriever import EncodingOptions

DATED = (
    "{% for message in messages %}<|user|>{{ strftime_now('%d %b %Y') }} "
    "{% if brief %}briefly {% endif %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize("template", [None, DATED])
def test_a_plain_tokenizer_writes_the_prompt_that_was_measured(llm_folder, tmp_path, template):
    """The second template reads a variable and the date, and leaves the first token to the tokenizer."""
    from transformers import AutoTokenizer, GenerationConfig

    source = shutil.copytree(llm_folder, tmp_path / "source")
    llm: dict[str, object] = {}
    if template:
        (source / "chat_template.jinja").write_text(template)
        tokenizer = json.loads((source / "tokenizer.json").read_text())
        first = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        tokenizer["post_processor"] = {
            "type": "TemplateProcessing", "single": [first, text], "pair": [text, text],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [1], "tokens": ["<|bos|>"]}},
        }  # fmt: skip
        (source / "tokenizer.json").write_text(json.dumps(tokenizer))
        llm = {"template": {"brief": True}, "date": "2026-03-01"}
    sampling = {"sampling_temperatures": [0.7], "top_p": 0.8, "max_new_tokens": 9}
    options = JointLoopOptions.model_validate({"llm": llm, "expand": {"expansion": sampling}})
    (tmp_path / "out").mkdir()
    export_llm(source, tmp_path / "out", options)

    chat = chat_options(template_of(source), options.llm.template, options.llm.date)
    measured = prompt_ids(load_tokenizer(source, chat), "what is it?")
    plain = AutoTokenizer.from_pretrained(tmp_path / "out")
    turn = [{"role": "user", "content": "what is it?"}]
    ids = plain.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == measured and ids[0] == 1 and ids[1] != 1
    if template:
        assert "01 Mar 2026 briefly what is it?" in plain.decode(ids)
    read = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (read.do_sample, read.temperature, read.top_p, read.top_k) == (True, 0.7, 0.8, 0)
    assert read.max_new_tokens == 9 and read.eos_token_id == [2]


def test_anchordr_gives_the_vectors_that_were_measured_through_our_loader(tmp_path):
    from sentence_transformers import SentenceTransformer

    encoding = EncodingOptions(similarity="dot", max_tokens=8)
    model = make_anchordr(train_pieces(tmp_path / "pieces"))
    made = SentenceTransformer(modules=[model], device="cpu", prompts={"query": "", "document": ""})
    made.save(str(tmp_path / "made"), create_model_card=False)
    (tmp_path / "out").mkdir()
    export_retriever(tmp_path / "made", tmp_path / "out", encoding)
    measured = Encoder(tmp_path / "made", "cpu", encoding).encode_passages(SENTENCES)
    exported = load_sentence_model(tmp_path / "out", "cpu")
    vectors = exported.encode_document(SENTENCES)
    assert exported.similarity_fn_name == "dot"
    assert np.allclose(vectors, measured, atol=1e-6)
    uncut = Encoder(tmp_path / "made", "cpu", EncodingOptions(similarity="dot"))
    assert not np.allclose(vectors, uncut.encode_passages(SENTENCES), atol=1e-3)
