"""What deploying did to each thing."""

from dataclasses import dataclass
from typing import Literal

from rich.table import Table

Result = Literal["created", "updated", "unchanged", "kept", "removed", "skipped"]


@dataclass(frozen=True)
class Change:
    """What was done to one thing.

    Attributes:
        kind: pool, deployment, schedule or automation.
        result: "kept" is unchanged although the code says otherwise, because a person set it.
        detail: what was changed or kept, or why it was skipped.
    """

    kind: str
    name: str
    result: Result
    detail: str = ""


def result_of(updated: list[str], kept: list[str]) -> tuple[Result, str]:
    """Sum up the fields of something that was there already."""
    words = [", ".join(updated)] if updated else []
    words += [f"yours: {', '.join(kept)}"] if kept else []
    result = "updated" if updated else "kept" if kept else "unchanged"
    return result, "; ".join(words)


def table_of(changes: list[Change]) -> Table:
    """Lay out what was done."""
    table = Table("", "name", "result", "detail", box=None, pad_edge=False)
    for change in changes:
        table.add_row(change.kind, change.name, change.result, change.detail)
    return table
