"""The form of a deployment: the parameter schema of its flow, as Prefect's UI shows it.

The UI shows titles, descriptions, defaults, choices and the reading order. It checks bounds without
showing them, so descriptions state them, and also the values that presets set.
"""

import functools
import json
from typing import Any, get_args

from prefect import Flow
from prefect.utilities.callables import parameter_schema

from expandr_core.options.base import Options
from expandr_core.options.loop import JointLoopOptions
from flows.option_paths import OptionPath, option_paths
from flows.presets import Preset, resolve

BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "minItems": "{} or more",
}


@functools.cache  # several deployments share a flow
def form(flow: Flow[..., Any]) -> dict[str, Any]:
    """Return the parameter schema of a flow, closed to other parameters and with described bounds."""
    schema: dict[str, Any] = parameter_schema(flow).model_dump(exclude_unset=True)
    schema["additionalProperties"] = False
    definitions = schema.get("definitions", {})
    if "preset" in schema["properties"]:
        _tell_presets(definitions)
        names = [".".join(path) for path in option_paths()]
        schema["properties"]["back_to_default"]["items"] = {"type": "string", "enum": names}
    for properties in [schema, *definitions.values()]:
        for field in properties.get("properties", {}).values():
            bounds = [
                text.format(f"{field[name]:g}") for name, text in BOUNDS.items() if name in field
            ]
            if bounds:
                words = ", ".join(bounds)
                field["description"] = f"{field.get('description', '')} ({words})".strip()
    return schema


def _tell_presets(definitions: dict[str, Any]) -> None:
    """Add the presets' values to descriptions; by group, if several share the option class."""
    for (group, name), told in _set_by_presets().items():
        words = "; ".join(
            (f"for {path[-2]} " if len(told) > 1 else "") + ", ".join(values)
            for path, values in told.items()
            if values
        )
        if not words:
            continue
        field = definitions[group]["properties"][name]
        field["description"] = f"{field.get('description', '')} Presets: {words}.".strip()


def _set_by_presets() -> dict[tuple[str, str], dict[OptionPath, list[str]]]:
    """Return the non-default values of presets, by group and name, then by path."""
    found: dict[tuple[str, str], dict[OptionPath, list[str]]] = {}
    defaults = JointLoopOptions()
    for preset in get_args(Preset):
        options = resolve(preset, defaults)
        for path in option_paths():
            group, value = _at(options, path[:-1]), _at(options, path)
            told = found.setdefault((type(group).__name__, path[-1]), {}).setdefault(path, [])
            if not isinstance(value, Options) and value != _at(defaults, path):
                told.append(f"{preset} {_text(value)}")
    return found


def _at(options: Any, path: OptionPath) -> Any:
    for name in path:
        options = getattr(options, name)
    return options


def _text(value: Any) -> str:
    """Write a value as the form shows it.

    >>> _text((0.8, 0.9)), _text(True), _text("")
    ('[0.8, 0.9]', 'true', '""')
    """
    return json.dumps(value) if not isinstance(value, str) or not value else value
