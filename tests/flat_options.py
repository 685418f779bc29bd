"""A stage's options from flat values: each goes into the first group that has an option of its name."""

from typing import Any, TypeVar

from expandr_core.options.base import Options

Stage = TypeVar("Stage", bound=Options)


def flat(stage: type[Stage], **values: Any) -> Stage:
    """Build the options of a stage, or of a group."""
    groups: dict[str, dict[str, Any]] = {}
    for name, field in stage.model_fields.items():
        group = field.annotation
        if name not in values and isinstance(group, type) and issubclass(group, Options):
            groups[name] = {each: values.pop(each) for each in group.model_fields if each in values}
    return stage(**groups, **values)
