"""Options by path, such as dpo.beta, and suggestions for paths that do not exist."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

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
