"""A prompt of one's own, read from its file where a config is read: only its text goes further."""

from pathlib import Path
from typing import Any, get_args

from expandr_core.errors import DataError
from expandr_core.options.generation import OWN_PROMPT, Prompt, fault_of_prompt


def with_prompt_text(values: dict[str, Any]) -> dict[str, Any]:
    """Return a config's values with a prompt's text in place of `expand.prompt: FILE`.

    Args:
        values: as YAML gives them. A path is relative to the working directory, as those of models.

    Raises:
        DataError: if there is neither such a file nor a prompt of that name, or it holds no prompt.
    """
    expand = values.get("expand")
    prompt = expand.get("prompt") if isinstance(expand, dict) else None
    if isinstance(prompt, str):
        prompt = {"name": prompt}
    if not isinstance(expand, dict) or not isinstance(prompt, dict):
        return values
    name = prompt.get("name")
    if not isinstance(name, str) or name in (*get_args(Prompt), OWN_PROMPT):
        return values
    return values | {
        "expand": expand | {"prompt": prompt | {"name": OWN_PROMPT, "text": _read(name)}}
    }


def _read(given: str) -> str:
    path = Path(given).expanduser()
    if not path.is_file():
        raise DataError(
            f"expand.prompt: {given!r} is neither a file nor one of {', '.join(get_args(Prompt))}; give "
            "the path of a text file with {query} in it, or one of these names"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expand.prompt: {given} cannot be read as UTF-8 text: {error}") from error
    if problem := fault_of_prompt(text):
        raise DataError(f"expand.prompt: {given}: {problem}")
    return text
