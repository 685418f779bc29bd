"""What every group of options is: typed, frozen, in reading order; and which of them are in a key."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Positive = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]


def _keep_order(schema: dict[str, Any]) -> None:
    """Number the fields: Prefect's form otherwise sorts them by name."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


class Options(BaseModel):
    """Typed, frozen, and closed: a misspelled option is an error, and so is a number without end.

    A default is what it would be if it were given: 2 in a field of floats is 2.0, in keys too.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        json_schema_extra=_keep_order,
    )


def runtime(default: Any, **field: Any) -> Any:
    """Declare an option that changes speed, memory or place, but not the artifact's meaning."""
    return Field(default=default, json_schema_extra={"in_key": False}, **field)


def added(default: Any, **field: Any) -> Any:
    """Declare an option that is newer than its stage: at its default it leaves earlier keys valid."""
    return Field(default=default, json_schema_extra={"in_key": "if changed"}, **field)


def identity(options: Options) -> dict[str, Any]:
    """Return the options that enter the artifact's key.

    Those made with `runtime` never do, those made with `added` only if they differ from the default.

    >>> from expandr_core.options.retriever import EncodingOptions
    >>> sorted(identity(EncodingOptions()))  # without batch_size
    ['max_tokens', 'precision', 'similarity']
    """
    return {
        name: _plain(value)
        for name, field in type(options).model_fields.items()
        if _in_key(field, value := getattr(options, name))
    }


def _in_key(field: FieldInfo, value: Any) -> bool:
    extra = field.json_schema_extra
    rule = extra.get("in_key", True) if isinstance(extra, dict) else True
    return value != field.default if rule == "if changed" else bool(rule)


def _plain(value: Any) -> Any:
    if isinstance(value, Options):
        return identity(value)
    return [_plain(element) for element in value] if isinstance(value, tuple) else value
