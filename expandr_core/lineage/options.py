"""Recorded options, as plain values by path: which differ from the defaults, or between two runs."""

import itertools
from collections.abc import Mapping
from typing import Any

from expandr_core.lineage.nodes import ADAPTERS
from expandr_core.options.base import Options
from expandr_core.options.loop import JointLoopOptions
from expandr_core.runtime.runner import module_of
from expandr_core.store.run_records import RecordedRun

ABSENT = "absent"  # the value of an option that a version did not have
FORMERLY = {
    "loop.keep_level": 1.0,
    "loop.next_round": "latest",
}  # how versions without them behaved


def flat(options: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return options by path.

    >>> flat({"dpo": {"beta": 0.1, "lora": {"rank": 8}}, "seed": 1})
    {'dpo.beta': 0.1, 'dpo.lora.rank': 8, 'seed': 1}
    """
    found: dict[str, Any] = {}
    for name, value in options.items():
        path = f"{above}.{name}" if above else name
        found |= flat(value, path) if isinstance(value, dict) and value else {path: value}
    return found


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ, by path, with both values.

    >>> differing({"dpo": {"beta": 0.1}, "seed": 0}, {"dpo": {"beta": 0.2}, "seed": 0})
    {'dpo.beta': (0.1, 0.2)}
    """
    one, other = flat(before), flat(after)
    return {
        path: (one.get(path, ABSENT), other.get(path, ABSENT))
        for path in dict.fromkeys([*one, *other])
        if one.get(path, ABSENT) != other.get(path, ABSENT)
    }


def changed_options(run: RecordedRun) -> dict[str, Any]:
    """Return the options of a run that differed from the defaults, by path.

    Older records do not say which these were; their options are compared with today's defaults, and
    options that exist no longer are among them.
    """
    if run.changed is not None:
        return flat(run.changed)
    defaults = flat(JointLoopOptions().model_dump(mode="json"))
    options = flat(run.options)
    return {path: value for path, value in options.items() if value != defaults.get(path, ABSENT)}


def differing_options(before: RecordedRun, after: RecordedRun) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ between two runs, by path, with both values.

    An option that an earlier version did not have has the value that it behaved by, or else is ABSENT,
    unless the other run has it at its default.
    """
    defaults = flat(JointLoopOptions().model_dump(mode="json"))
    one, other = (FORMERLY | flat(run.options) for run in (before, after))
    return but_for_new(differing(one, other), defaults)


def but_for_new(
    differences: Mapping[str, tuple[Any, Any]], defaults: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Leave out options that only one version has, at their defaults.

    >>> but_for_new({"mode": ("absent", "off"), "seed": ("absent", 0)}, {"mode": "on", "seed": 0})
    {'mode': ('absent', 'off')}
    """
    return {
        path: pair
        for path, pair in differences.items()
        if ABSENT not in pair or path not in defaults or defaults[path] not in pair
    }


def changed_stage_options(stage: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a stage that differ from today's defaults, by path.

    Options without a default of their own, such as a required one, are among them.
    """
    defaults = stage_defaults(stage)
    return {p: value for p, value in flat(options).items() if value != defaults.get(p, ABSENT)}


def stage_defaults(stage: str) -> dict[str, Any]:
    """Return today's defaults of a stage's options, by path; none if there is no such stage any more."""
    try:
        return flat(_defaults(module_of(stage.removesuffix("_shard")).OPTIONS))
    except (ImportError, AttributeError):
        return {}


def named_as_in_runs(
    options: Mapping[str, tuple[Any, Any]], runs: Mapping[str, tuple[Any, Any]], stage: str
) -> dict[str, tuple[Any, Any]]:
    """Name a stage's options as those of the run, where these differ alike.

    >>> named_as_in_runs({"training.beta": (0.1, 0.2)}, {"dpo.beta": (0.1, 0.2)}, "dpo")
    {'dpo.beta': (0.1, 0.2)}
    >>> named_as_in_runs({"size": (1, 2)}, {}, "sample")
    {'sample: size': (1, 2)}

    Where several do, a group of the stage's own comes first:

    >>> alike = {"training.epochs": (1, 2), "dpo.epochs": (1, 2)}
    >>> named_as_in_runs({"training.epochs": (1, 2)}, alike, "kto")
    {'dpo.epochs': (1, 2)}
    """
    found = {}
    group = "dpo" if stage in ADAPTERS else stage
    for path, values in options.items():
        name = path.rpartition(".")[2]
        alike = [p for p, v in runs.items() if v == values and p.rpartition(".")[2] == name]
        alike.sort(key=lambda each: (not each.startswith(f"{group}."), -_common_end(each, path)))
        found[alike[0] if alike else f"{stage}: {path}"] = values
    return found


def _common_end(one: str, other: str) -> int:
    """Count the names that two paths have in common at their ends."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _defaults(kind: type[Options]) -> dict[str, Any]:
    """Return the defaults of a class of options, and those of its groups."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        group = field.annotation
        if not field.is_required():
            default = field.get_default(call_default_factory=True)
            plain = default.model_dump(mode="json") if isinstance(default, Options) else default
            found[name] = list(plain) if isinstance(plain, tuple) else plain
        elif isinstance(group, type) and issubclass(group, Options):
            found[name] = _defaults(group)
    return found
