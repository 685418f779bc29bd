"""Show what garbage collection would remove from a store, and remove it."""

import re
from collections import Counter
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.table import Table

from expandr_core.errors import DataError
from expandr_core.store.garbage import find_garbage, remove_garbage
from expandr_core.store.store import Store

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def parse_age(text: str) -> timedelta:
    """Read an age.

    >>> parse_age("36h")
    datetime.timedelta(days=1, seconds=43200)

    Raises:
        DataError: if it is none.
    """
    match = re.fullmatch(r"(\d+)([hdw])", text)
    if not match:
        raise DataError(f"{text!r} is no age; write it as 12h, 30d or 8w")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def collect_garbage(
    out: Console, store: Store, keep_runs: int | None, older_than: timedelta, delete: bool
) -> None:
    """Print what may go, with sizes and ages; remove it only if asked to."""
    now = datetime.now(UTC)
    found = find_garbage(store, keep_runs, now - older_than)
    table = Table("what", "which", "size", "age")
    for each in found:
        days = (now - each.changed) / timedelta(days=1)
        table.add_row(each.kind, each.name, f"{each.size / 1e6:,.1f} MB", f"{days:.1f} days")
    if found:
        out.print(table)
    left = dict(zip(found, remove_garbage(found), strict=True)) if delete else {}
    for each, why in left.items():
        if why:
            out.print(f"left: {each.kind} {each.name}: {why}", markup=False, soft_wrap=True)
    gone = [each for each in found if not left.get(each)]
    kinds = Counter(each.kind for each in gone)
    total = sum(each.size for each in gone)
    listed = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "nothing"
    verb = "removed" if delete else "would go"
    out.print(
        f"{verb}: {listed}; {total / 1e6:,.1f} MB in {store.url}", highlight=False, soft_wrap=True
    )
    if found and not delete:
        out.print("This was a dry run; `--delete` removes it.")
