"""Options by path, such as dpo.beta: set, refused, and suggested where a path does not exist."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from expandr_core.options.base import Options
from expandr_core.options.loop import JointLoopOptions

OptionPath = tuple[str, ...]
RENAMED = {
    "expand.max_prompt_tokens": "expand.prompt.max_tokens",
    "preferences.dev_share": "preferences.dpo_dev_share",
    "preferences.length_share": "preferences.max_length_bias",
    "training.dev_share": "training.held_out_share",
    "training.mining_depth": "mining.depth",
    "training.mining_margin": "mining.margin",
}


def options_below(path: Sequence[Any]) -> dict[str, Any]:
    """Return the options of a group by name; none if it is no group."""
    group: Any = JointLoopOptions
    for name in path:
        field = group.model_fields.get(name)
        group = field.annotation if field else None
        if not (isinstance(group, type) and issubclass(group, Options)):
            return {}
    return group.model_fields


def option_paths(path: OptionPath = ()) -> Iterator[OptionPath]:
    """Yield the path of every option and group below a group."""
    for name in options_below(path):
        yield (*path, name)
        yield from option_paths((*path, name))


def meant(path: OptionPath) -> str:
    """Suggest the option's new name, a similar one beside it, or the same one in another group."""
    if renamed := RENAMED.get(".".join(path)):
        return f"it is {renamed} now"
    elsewhere = [".".join(each) for each in option_paths() if each[-1] == path[-1]]
    alike = difflib.get_close_matches(path[-1], options_below(path[:-1]), n=2)
    meant = [".".join((*path[:-1], name)) for name in alike] or elsewhere
    if not meant:
        every = [".".join(each) for each in option_paths()]
        meant = difflib.get_close_matches(".".join(path), every, n=2, cutoff=0.75)
    if meant:
        return f"did you mean {' or '.join(meant)}?"
    names = ", ".join(options_below(path[:-1]))
    return f"here are {names}" if names else "see configs/ for what there is"


def put(values: dict[str, Any], path: OptionPath, value: Any) -> None:
    """Set one of the values, whatever is there; the name of a group that has one leaves the rest.

    >>> values = {"dpo": {"beta": 0.1}}
    >>> put(values, ("dpo", "epochs"), 3)
    >>> values
    {'dpo': {'beta': 0.1, 'epochs': 3}}
    """
    for part in path[:-1]:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    beside = values.get(path[-1])
    if isinstance(value, str) and isinstance(beside, dict) and "name" in options_below(path):
        # the group's name alone; a prompt's own text belonged to the former one
        value = {name: each for name, each in beside.items() if name != "text"} | {"name": value}
    values[path[-1]] = value


def complaints(
    error: ValidationError, where: str, said: Mapping[OptionPath, str] | None = None
) -> list[str]:
    """Say what is wrong with options, each complaint once.

    Args:
        error: of JointLoopOptions.
        where: the options are from.
        said: where else some of them were said, by path.
    """
    return list(dict.fromkeys(_complaint(each, where, said or {}) for each in error.errors()))


def _complaint(problem: ErrorDetails, config: str, said: Mapping[OptionPath, str]) -> str:
    """Say what is wrong, where it was said, and what may have been meant."""
    path = tuple(map(str, problem["loc"]))
    said_there = [
        text for own, text in said.items() if own[: len(path)] == path or path[: len(own)] == own
    ]
    where = " and ".join(said_there) or config
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
