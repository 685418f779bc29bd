"""The form of a deployment: the parameter schema of its flow, as Prefect's UI shows it.

The UI shows titles, descriptions, defaults, choices and the reading order, and checks bounds, but does
not say them: so the descriptions do.
"""

import functools
from typing import Any

from prefect import Flow
from prefect.utilities.callables import parameter_schema

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
    """Return the parameter schema of a flow: no other parameters, bounds told in the descriptions."""
    schema: dict[str, Any] = parameter_schema(flow).model_dump(exclude_unset=True)
    schema["additionalProperties"] = False
    for properties in [schema, *schema.get("definitions", {}).values()]:
        for field in properties.get("properties", {}).values():
            bounds = [
                text.format(f"{field[name]:g}") for name, text in BOUNDS.items() if name in field
            ]
            if bounds:
                words = ", ".join(bounds)
                field["description"] = f"{field.get('description', '')} ({words})".strip()
    return schema
