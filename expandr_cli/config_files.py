"""Config files of the command line, and options that change them."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from expandr_cli.terminal import fail
from expandr_core.errors import DataError
from expandr_core.options.loop import JointLoopOptions
from flows.option_paths import OptionPath, complaints, options_below, put
from flows.prompt_file import with_prompt_text

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one option, such as `--set dpo.beta=0.2`; repeatable."),
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of every random choice.")]


def load_options(
    config: Path,
    seed: int | None,
    changes: list[str],
    between: tuple[str, Mapping[str, Any]] = ("", {}),
) -> JointLoopOptions:
    """Read a YAML config and change it; end with a message if it is wrong.

    Args:
        config: the file.
        seed: replaces the config's.
        changes: like "dpo.beta=0.2".
        between: a name, and changes by dotted names that come before those.
    """
    said: dict[OptionPath, str] = {}  # elsewhere than in the config
    try:
        values = yaml.safe_load(config.read_text()) or {}
        if not isinstance(values, dict):
            raise DataError(f"{config}: no options; write them as `name: value`, see configs/")
        values = with_prompt_text(values)
        with contextlib.suppress(
            ValidationError
        ):  # so that a change leaves what is beside it alone
            values = JointLoopOptions.model_validate(values).model_dump(mode="json")
        for name, value in between[1].items():
            path = tuple(name.split("."))
            put(values, path, value)
            said[path] = f"{between[0]}, base"
        for change in changes:
            said[_apply(values, change)] = f"--set {change}"
        if seed is not None:
            values["seed"] = seed
        return JointLoopOptions.model_validate(with_prompt_text(values))
    except ValidationError as error:
        fail("\n".join(complaints(error, str(config), said)))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, DataError) as error:
        if isinstance(error, FileNotFoundError) and error.filename == str(config):
            fail(f"{config}: there is no such file; configs/ has some to start from")
        if isinstance(error, IsADirectoryError) and error.filename == str(config):
            fail(f"{config}: a folder; name a file in it")
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
    put(values, path, value)
    return path


def said_of(seed: int | None, changes: list[str] | None) -> list[str]:
    """Return what was said on the command line to change a config."""
    return [*(changes or []), *([] if seed is None else [f"seed={seed}"])]
