"""Presets: the configurations of `configs/`, chosen by name and changed by what the user says."""

from pathlib import Path
from typing import Any, Literal

import yaml

from expandr_core.errors import DataError
from expandr_core.options import JointLoopOptions, Options
from tasks.placement import SPREAD, Placement

Preset = Literal["none", "tiny", "demo", "scifact", "paper", "cosine-0.02"]
CONFIGS = Path(__file__).parent.parent / "configs"


def resolve(preset: Preset, options: JointLoopOptions) -> JointLoopOptions:
    """Return the preset's options, changed by each field of `options` that is not at its default.

    A form sends every field, so a field at its default cannot be told from one left alone: to give
    an option of a preset its default back, start from the preset "none".

    Raises:
        DataError: if the preset's file is missing.
        ValueError: if the two together are not valid options.
    """
    if preset == "none":
        return options
    path = CONFIGS / f"{preset}.yaml"
    if not path.is_file():
        raise DataError(
            f"{path} is missing; install from a clone, with `make install` or `pip install -e .`"
        )
    values = yaml.safe_load(path.read_text())
    return JointLoopOptions(**_merged(values, _changes(options, JointLoopOptions())))


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
