"""Presets: the configurations of `configs/`, chosen by name and changed by what the user says."""

from pathlib import Path
from typing import Any, Literal

import yaml

from expandr_core.errors import DataError
from expandr_core.options.base import Options
from expandr_core.options.loop import JointLoopOptions
from flows.option_paths import meant, option_paths
from flows.prompt_file import with_prompt_text
from tasks.placement import SPREAD, Placement

Preset = Literal["none", "tiny", "demo", "scifact", "gemma", "paper", "released", "cosine-0.02"]
CONFIGS = Path(__file__).parent.parent / "configs"


def resolve(
    preset: Preset, options: JointLoopOptions, back_to_default: tuple[str, ...] = ()
) -> JointLoopOptions:
    """Return the preset's options, changed by each field of `options` that is not at its default.

    A form sends every field, so a field at its default cannot be told from one left alone.

    Args:
        preset: where to begin.
        options: what differs from its default changes the preset.
        back_to_default: options or groups of the preset to set back to their defaults, such as
            "loop.rounds" or "dpo".

    Raises:
        DataError: if the preset's file is missing, or there is no such option.
        ValueError: if all together are not valid options.
    """
    values = _values_of(preset)
    for name in back_to_default:
        _put(values, tuple(name.split(".")), JointLoopOptions().model_dump())
    if preset == "none":
        return options
    return JointLoopOptions(**_merged(values, _changes(options, JointLoopOptions())))


def _values_of(preset: Preset) -> dict[str, Any]:
    """Read what a preset's file says."""
    if preset == "none":
        return {}
    path = CONFIGS / f"{preset}.yaml"
    if not path.is_file():
        raise DataError(
            f"{path} is missing; install from a clone, with `make install` or `pip install -e .`"
        )
    return with_prompt_text(yaml.safe_load(path.read_text()))


def _put(values: dict[str, Any], path: tuple[str, ...], defaults: dict[str, Any]) -> None:
    """Set one of the values to its default."""
    if path not in option_paths():
        raise DataError(f"back_to_default: there is no option {'.'.join(path)}; {meant(path)}")
    for name in path[:-1]:
        values, defaults = values.setdefault(name, {}), defaults[name]
    values[path[-1]] = defaults[path[-1]]


def place(preset: Preset, placement: Placement) -> Placement:
    """Return where the stages of a run go: those of the tiny preset need no pool and no GPU.

    A form sends the placement that it begins with, so that is taken for no choice, and another for one.
    """
    return Placement() if preset == "tiny" and placement == SPREAD else placement


def _changes(options: Options, defaults: Options) -> dict[str, Any]:
    """Collect what differs, down to single fields; a nested default may differ from its class's."""
    changed: dict[str, Any] = {}
    for name in type(options).model_fields:
        value, default = getattr(options, name), getattr(defaults, name)
        if value == default:
            continue
        changed[name] = _changes(value, default) if isinstance(value, Options) else value
    return changed


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in changes.items():
        below = merged.get(name)
        merged[name] = _merged(below or {}, value) if isinstance(value, dict) else value
    return merged
