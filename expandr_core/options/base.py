"""What every group of options is: typed, frozen, in reading order; and which of them are in a key."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]


def _keep_order(schema: dict[str, Any]) -> None:
    """Number the fields: Prefect's form otherwise sorts them by name."""
    for position, field in enumerate(schema.get("properties", {}).values()):
        field["position"] = position


class Options(BaseModel):
    """Typed, frozen, and closed: a misspelled option is an error, and so is a number without end."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_keep_order
    )


def runtime(default: Any, **field: Any) -> Any:
    """Declare an option that changes speed, memory or place, but not the artifact's meaning."""
    return Field(default=default, json_schema_extra={"in_key": False}, **field)


def identity(options: Options) -> dict[str, Any]:
    """Return the options that enter the artifact's key: all but those made with `runtime`.

    >>> from expandr_core.options.retriever import EncodingOptions
    >>> sorted(identity(EncodingOptions()))  # without batch_size
    ['max_tokens', 'precision', 'similarity']
    """
    return {
        name: _plain(getattr(options, name))
        for name, field in type(options).model_fields.items()
        if not (isinstance(field.json_schema_extra, dict) and "in_key" in field.json_schema_extra)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Options):
        return identity(value)
    return [_plain(element) for element in value] if isinstance(value, tuple) else value
