"""What a chat template writes is determined by the options: its variables, and its date."""

import json
import shutil
from datetime import datetime

import pytest
import transformers.utils.chat_template_utils as library
from tiny_models import ASSISTANT, EOS, TEMPLATE, make_tokenizer, save_parrot

from expandr_core.errors import DataError
from expandr_core.generation.chat_templates import chat_options, load_tokenizer, template_of
from expandr_core.generation.engine import Codec
from expandr_core.generation.prompts import prompt_ids
from expandr_core.options.base import identity
from expandr_core.options.generation import (
    DEFAULT_DATE,
    ChatOptions,
    LLMOptions,
    PromptOptions,
    SamplingOptions,
)
from expandr_core.options.loop import JointLoopOptions
from expandr_core.stages import dpo, expand, merge

LLAMA = (  # as that of Llama 3.2 asks for it
    "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- if strftime_now is defined %}\n"
    "        {%- set date_string = strftime_now('%d %b %Y') %}\n    {%- else %}\n"
    "        {%- set date_string = '26 Jul 2024' %}\n    {%- endif %}\n{%- endif %}\n"
    "Today Date: {{ date_string }}" + TEMPLATE.replace("{{ bos_token }}", "")
)
IN_MACRO = (  # within a macro, and in another form
    "{%- macro today() -%}{{ strftime_now('%A, %-d %B %Y') }}{%- endmacro -%}{{ today() }}"
    + TEMPLATE
)
OLDER = LLAMA.replace("strftime_now is defined", "false").replace("strftime_now('%d %b %Y')", "''")
THINKING = (
    "{% if enable_thinking is defined and enable_thinking is false %}quick{% endif %}" + TEMPLATE
)


def prompt(folder, source: str, **chat) -> str:
    save_parrot(folder, make_tokenizer(source), [ASSISTANT, EOS])
    tokenizer = load_tokenizer(folder, ChatOptions(**chat))
    assert Codec(folder, ChatOptions(**chat)).tokenizer.chat_template == tokenizer.chat_template
    return tokenizer.decode(prompt_ids(tokenizer, "why?"))


# The date


@pytest.mark.parametrize(
    ("template", "day", "begins"),
    [
        (LLAMA, "", "<|bos|>Today Date: 26 Jul 2024<|user|>"),
        (LLAMA, "2026-03-09", "<|bos|>Today Date: 09 Mar 2026<|user|>"),
        (IN_MACRO, "", "Friday, 26 July 2024<|bos|>"),
        (IN_MACRO, "2026-03-09", "Monday, 9 March 2026<|bos|>"),
        (OLDER, "", "<|bos|>Today Date: 26 Jul 2024<|user|>"),
        (OLDER, "2026-03-09", "<|bos|>Today Date: 09 Mar 2026<|user|>"),
        ("\n  " + LLAMA.replace("{{- bos", "{{ bos"), "", "\n  <|bos|>Today Date: 26 Jul 2024"),
    ],
)
def test_the_date_is_that_of_the_options(tmp_path, template, day, begins):
    assert prompt(tmp_path, template, date=day).startswith(begins)


@pytest.mark.parametrize("template", [LLAMA, IN_MACRO])
def test_on_another_day_the_prompt_is_the_same(tmp_path, template, monkeypatch):
    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 12, 1)

    before = prompt(tmp_path, template)
    monkeypatch.setattr(library, "datetime", Later)
    assert prompt(tmp_path, template) == before


@pytest.mark.parametrize(
    ("template", "variables", "in_key"),
    [(LLAMA, {}, True), (IN_MACRO, {}, True), (OLDER, {}, True), (TEMPLATE, {}, False)],
)
def test_the_date_is_in_the_key_where_the_template_reads_it(template, variables, in_key):
    chat = chat_options(template, variables, DEFAULT_DATE)
    assert chat.date == (DEFAULT_DATE if in_key else "")


# Variables


@pytest.mark.parametrize("value", ['"so" %} {{ é \U0001f600\n', 1.5, -2, True, "{% endif %}"])
def test_a_variable_of_the_template_has_the_value_of_the_options(tmp_path, value):
    template = "{{ mode is defined }} {{ mode }}\n" + TEMPLATE
    said = prompt(tmp_path, template, template={"mode": value})
    assert said.startswith(f"True {value}\n<|bos|>")
    assert prompt(tmp_path, template).startswith("False \n<|bos|>")


def test_a_template_stays_as_it_is_if_nothing_is_set(tmp_path):
    save_parrot(tmp_path, make_tokenizer(), [ASSISTANT, EOS])
    assert load_tokenizer(tmp_path).chat_template == TEMPLATE


def test_a_variable_that_the_template_does_not_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no 'enable_thinkng'; did you mean enable_thinking\?"):
        chat_options(THINKING, {"enable_thinkng": False}, DEFAULT_DATE)
    with pytest.raises(DataError, match="no 'enable_thinking'; it reads"):
        prompt(tmp_path, TEMPLATE, template={"enable_thinking": False})
    with pytest.raises(DataError, match="no 'messages'"):
        chat_options(THINKING, {"messages": "mine"}, DEFAULT_DATE)


def test_a_template_with_an_error_is_named():
    with pytest.raises(DataError, match=r"an error in line 2 .*; correct chat_template\.jinja"):
        chat_options("{{ bos_token }}\n{% if %}", {}, DEFAULT_DATE)


def test_an_invalid_variable_name_is_refused():
    with pytest.raises(ValueError, match="should match pattern"):
        LLMOptions(template={"a %}{{ b": 1})
    with pytest.raises(ValueError, match="isoformat"):
        LLMOptions(date="yesterday")


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("in_config", [False, True])
def test_the_template_is_found_where_the_library_finds_it(tmp_path, in_config, several):
    tokenizer = make_tokenizer(LLAMA)
    if several:
        tokenizer.chat_template = {"default": LLAMA, "tool_use": "x"}
    tokenizer.save_pretrained(tmp_path)
    if in_config:  # as older versions write it
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": LLAMA}]
        config["chat_template"] = named if several else LLAMA
        (tmp_path / "chat_template.jinja").unlink()
        shutil.rmtree(tmp_path / "additional_chat_templates", ignore_errors=True)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert template_of(tmp_path) == LLAMA
    assert load_tokenizer(tmp_path).chat_template.endswith(LLAMA)


# Keys


@pytest.mark.parametrize(
    "options",
    [
        expand.OPTIONS(
            prompt=PromptOptions(max_tokens=9), sampling=SamplingOptions(), queries_per_shard=9
        ),
        dpo.OPTIONS(),
        merge.OPTIONS(),
    ],
)
def test_how_a_template_is_rendered_is_in_the_key_of_every_stage_that_renders_it(options):
    chat = ChatOptions(template={"enable_thinking": False})
    changed = identity(options.model_copy(update={"chat": chat}))
    assert changed["chat"] == {"template": {"enable_thinking": False}, "date": ""}
    assert changed | {"chat": {"template": {}, "date": ""}} == identity(options)


def test_a_date_in_yaml_and_one_in_json_are_the_same():
    import yaml

    read = yaml.safe_load("llm: {date: 2026-03-09, template: {enable_thinking: false}}")
    options = JointLoopOptions(**read)
    assert options.llm.date == "2026-03-09" and options.llm.template == {"enable_thinking": False}
    assert JointLoopOptions.model_validate_json(options.model_dump_json()) == options
