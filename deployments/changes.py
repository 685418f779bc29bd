"""What a deployment changed on the server."""

from dataclasses import dataclass
from typing import Literal

from rich.table import Table

Result = Literal["created", "updated", "unchanged", "kept", "removed", "skipped"]


@dataclass(frozen=True)
class Change:
    """What happened to one object on the server.

    Attributes:
        kind: pool, deployment, schedule or automation.
        result: "kept" means left as a person set it, unlike the code.
        detail: the fields changed or kept, or why it was skipped.
    """

    kind: str
    name: str
    result: Result
    detail: str = ""


def result_of(updated: list[str], kept: list[str]) -> tuple[Result, str]:
    """Summarise the fields of an object that already existed."""
    words = [", ".join(updated)] if updated else []
    words += [f"yours: {', '.join(kept)}"] if kept else []
    result = "updated" if updated else "kept" if kept else "unchanged"
    return result, "; ".join(words)


def table_of(changes: list[Change]) -> Table:
    """Return the changes as a table."""
    table = Table("", "name", "result", "detail", box=None, pad_edge=False)
    for change in changes:
        table.add_row(change.kind, change.name, change.result, change.detail)
    return table
