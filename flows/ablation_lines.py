"""The lines of an ablation: each changes some options of one configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from expandr_core.errors import DataError, naming
from expandr_core.options.base import Options
from expandr_core.options.loop import JointLoopOptions
from flows.option_paths import OptionPath, complaints, put
from flows.prompt_file import with_prompt_text

BASE, QUERY = "base", "query"  # the rows that every table has
FIXED = ("seed", "world", "data.collection", "data.cluster_by", "evaluate.significance")


class AblationLine(Options):
    """A row of the table: the base, but for some options."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        description="Small letters, digits and hyphens; 'base' and 'query' are taken.",
    )
    title: str = Field(default="", description="What the table says; empty for the name.")
    set: dict[str, Any] = Field(
        min_length=1,
        description="Options by their dotted names, such as dpo.beta, with their values here.",
    )

    @property
    def shown(self) -> str:
        """What the table says."""
        return self.title or self.name


class Ablations(Options):
    """A file of lines. `base` changes the configuration for all of them, and for the base itself."""

    base: dict[str, Any] = Field(default={})
    lines: tuple[AblationLine, ...] = Field(min_length=1)


def read_ablations(path: Path) -> Ablations:
    """Read a YAML file: a mapping of `base` and `lines`, or the list of lines alone.

    Raises:
        DataError: if it is none.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Ablations.model_validate({"lines": found} if isinstance(found, list) else found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(
            f"{path}: {where or 'it'}: {first['msg']}; write `lines:` with a list of `name: ...` and "
            "`set: {option: value}`, see configs/ablations.yaml"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: {error}") from error


def changed(options: JointLoopOptions, changes: Mapping[str, Any], where: str) -> JointLoopOptions:
    """Change options by their dotted names.

    Raises:
        DataError: if one does not exist, or all together are not valid; `where` names the changes.
    """
    values = options.model_dump(mode="json")
    said: dict[OptionPath, str] = {}
    for name, value in changes.items():
        path = tuple(name.split("."))
        put(values, path, value)
        said[path] = where
    with naming(where):
        values = with_prompt_text(values)
    try:
        return JointLoopOptions.model_validate(values)
    except ValidationError as error:
        raise DataError("\n".join(complaints(error, where, said))) from error


def variants(
    options: JointLoopOptions, lines: Sequence[AblationLine]
) -> dict[str, JointLoopOptions]:
    """Return the options of the base and of every line, by name.

    Raises:
        DataError: naming the line that is wrong: a name that is taken, options that do not exist or are
            not valid, or that change nothing, or what is measured.
    """
    found = {BASE: options}
    for line in lines:
        where = f"line {line.name!r}"
        if line.name in (*found, QUERY):
            raise DataError(f"{where}: there are two rows of that name; rename one")
        variant = changed(options, line.set, where)
        for path in FIXED:
            if _at(variant, path) != _at(options, path):
                raise DataError(
                    f"{where}: {path} is the same for the whole table, so that its rows can be "
                    "compared; set it in the configuration"
                    + (", or use --seeds" if path == "seed" else "")
                )
        for other, known in found.items():
            if variant == known:
                raise DataError(f"{where}: its options are those of {other!r}; remove it")
        found[line.name] = variant
    return found


def _at(options: Any, path: str) -> Any:
    for name in path.split("."):
        options = getattr(options, name)
    return options
