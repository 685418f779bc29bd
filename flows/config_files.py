"""Config files of the command line, and options that change them."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from expandr_core.errors import DataError
from expandr_core.options import JointLoopOptions
from flows.terminal import fail

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change an option, such as `--set dpo.beta=0.2`; repeatable."),
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Change every random choice.")]


def load_options(config: Path, seed: int | None, changes: list[str]) -> JointLoopOptions:
    """Read a YAML config and apply changes like "dpo.beta=0.2"; end with a message if it is wrong."""
    try:
        values = yaml.safe_load(config.read_text()) or {}
        for change in changes:
            path, equals, value = change.partition("=")
            if not equals:
                raise DataError(f"--set {change}: write it as name=value, such as dpo.beta=0.2")
            _set(values, path.split("."), yaml.safe_load(value))
        if seed is not None:
            values["seed"] = seed
        return JointLoopOptions(**values)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors()
        ]
        fail(f"{config}: these options are wrong\n" + "\n".join(lines))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, DataError) as error:
        fail(f"{config}: {error}" if str(config) not in str(error) else str(error))


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value
