"""Set the variables and the date of a model's chat template, as the options say.

A template that asks for the time (`strftime_now`) would write different prompts every day, so it gets
the date of the options. Variables and date become statements at the template's beginning, so that every
renderer, ours or a library's, writes the same prompt.
"""

import contextlib
import json
import re
from collections.abc import Callable
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from expandr_core.errors import DataError
from expandr_core.options.generation import DEFAULT_DATE, ChatOptions, Variables

FILES = ("chat_template.jinja", "tokenizer_config.json")  # the first that has a template counts
GIVEN = {"messages", "add_generation_prompt", "tools", "documents", "loop", "strftime_now"}
GIVEN |= {"raise_exception", "namespace", "range", "dict"}
_DATES = {"strftime_now", "date_string"}
_CLOCK = (  # replaces a format's directives one by one, as a template cannot call Python
    "{% macro strftime_now(format) %}{% set text = namespace(of=format) %}"
    "{% for part, value in PARTS.items() %}{% set text.of = text.of|replace(part, value) %}{% endfor %}"
    "{{ text.of }}{% endmacro %}"
)


def load_tokenizer(folder: Path, chat: ChatOptions | None = None) -> Any:
    """Load a model's tokenizer, and set the variables and the date of its chat template.

    Raises:
        DataError: if the template does not read one of the variables.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if tokenizer.chat_template:
        template = tokenizer.get_chat_template()
        tokenizer.chat_template = _with_values(template, chat or ChatOptions())
    return tokenizer


def find_template(read: Callable[[str], str | None]) -> str:
    """Return the chat template in the files of a model folder, or "".

    Args:
        read: returns the content of the folder's file of a name, or None if there is no such file.
    """
    template, config = map(read, FILES)
    if template is None and config is not None:
        with contextlib.suppress(ValueError):  # loading the tokenizer raises the error
            template = json.loads(config).get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {each["name"]: each["template"] for each in template}.get("default")
    return template or ""


def template_of(folder: Path) -> str:
    """Return the chat template of a model folder, or ""."""
    files = {name: folder / name for name in FILES}
    return find_template(
        lambda name: files[name].read_text(encoding="utf-8") if files[name].is_file() else None
    )


def chat_options(template: str, variables: Variables, day: str) -> ChatOptions:
    """Return the options that affect how a chat template is rendered; the date only if it reads one.

    Raises:
        DataError: if the template does not read one of the variables.
    """
    _check(template, variables)
    reads_date = bool(_DATES & _variables(template) - variables.keys())
    return ChatOptions(template=variables, date=day if reads_date else "")


def _with_values(template: str, chat: ChatOptions) -> str:
    _check(template, chat.template)
    read, values = _variables(template), dict(chat.template)
    day = date.fromisoformat(chat.date or DEFAULT_DATE)
    clock = ""
    if "strftime_now" in read:
        directives = set(re.findall(r"%[-_^#0]?[A-Za-z]", template))
        directives = sorted(directives | {f"%{letter}" for letter in "aAbBcdGHIjmMpSuUVwWxXyY"})
        parts = {directive: day.strftime(directive) for directive in directives}
        clock = _CLOCK.replace("PARTS", _literal(parts | {"%%": "%"}))
    elif "date_string" in read and day.isoformat() != DEFAULT_DATE:
        values.setdefault("date_string", day.strftime("%d %b %Y"))  # Llama's format
    sets = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in values.items())
    # Jinja drops the newline after a block
    return f"{clock}{sets}\n{template}" if clock or sets else template


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _check(template: str, variables: Variables) -> None:
    if not variables:
        return
    known = _variables(template) - GIVEN
    for name in variables:
        if name not in known:
            near = get_close_matches(name, known, 1)
            meant = f"did you mean {near[0]}?" if near else f"it reads {sorted(known) or 'none'}"
            raise DataError(f"llm.template: the model's chat template reads no {name!r}; {meant}")


def _variables(template: str) -> set[str]:
    """Return the names that a template reads but does not define."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # only parsed, never rendered
    generation_tag = r"\{%-?\s*(end)?generation\s*-?%\}"  # an extension of transformers
    try:
        return meta.find_undeclared_variables(
            environment.parse(re.sub(generation_tag, "", template))
        )
    except TemplateSyntaxError as error:
        raise DataError(
            f"the chat template has an error in line {error.lineno} ({error.message}); correct "
            "chat_template.jinja"
        ) from error
