"""Config files of the command line, and options that change them."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from expandr_cli.terminal import fail
from expandr_core.errors import DataError
from expandr_core.options.base import Options
from expandr_core.options.loop import JointLoopOptions
from flows.option_paths import OptionPath, meant, options_below
from flows.prompt_file import with_prompt_text

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one option, such as `--set dpo.beta=0.2`; repeatable."),
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of every random choice.")]


def load_options(config: Path, seed: int | None, changes: list[str]) -> JointLoopOptions:
    """Read a YAML config and apply changes like "dpo.beta=0.2"; end with a message if it is wrong."""
    said: dict[OptionPath, str] = {}  # on the command line
    try:
        values = yaml.safe_load(config.read_text()) or {}
        if not isinstance(values, dict):
            raise DataError(f"{config}: no options; write them as `name: value`, see configs/")
        values = with_prompt_text(values)
        with contextlib.suppress(
            ValidationError
        ):  # so that a change leaves what is beside it alone
            values = JointLoopOptions.model_validate(values).model_dump(mode="json")
        for change in changes:
            said[_apply(values, change)] = f"--set {change}"
        if seed is not None:
            values["seed"] = seed
        return JointLoopOptions.model_validate(with_prompt_text(values))
    except ValidationError as error:
        fail("\n".join(dict.fromkeys(_complaint(each, config, said) for each in error.errors())))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, DataError) as error:
        known = str(config) in str(error) or str(error).startswith("--set")
        fail(str(error) if known else f"{config}: {error}")


def _apply(values: dict[str, Any], change: str) -> OptionPath:
    """Change one of the values; return which."""
    name, equals, text = change.partition("=")
    path = tuple(name.split("."))
    if not equals:
        raise DataError(f"--set {change}: write it as name=value, such as dpo.beta=0.2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise DataError(f"--set {change}: {problem}; write a value as in YAML") from error
    field = options_below(path[:-1]).get(path[-1])
    if field is not None and field.annotation is str and not isinstance(value, str):
        value = text  # a folder named 2024, or none
    below = values
    for part in path[:-1]:
        if not isinstance(below.get(part), dict):
            below[part] = {}
        below = below[part]
    beside = below.get(path[-1])
    if isinstance(value, str) and isinstance(beside, dict) and "name" in options_below(path):
        # the group's name alone; a prompt's own text belonged to the former one
        value = {name: each for name, each in beside.items() if name != "text"} | {"name": value}
    below[path[-1]] = value
    return path


def _complaint(problem: ErrorDetails, config: Path, said: dict[OptionPath, str]) -> str:
    """Say what is wrong, where it was said, and what may have been meant."""
    path = tuple(map(str, problem["loc"]))
    on_command_line = [
        text for own, text in said.items() if own[: len(path)] == path or path[: len(own)] == own
    ]
    where = " and ".join(on_command_line) or str(config)
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return f"{where}: there is no option {name}; {meant(path)}"
    below = options_below(path)
    if below and problem["type"] != "value_error":
        return f"{where}: {name} is a group of options, such as {name}.{next(iter(below))}"
    what = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = "" if isinstance(given, dict | Options) else f", not {given!r:.100}"
    return f"{where}: {name}: {what}{shown}"
