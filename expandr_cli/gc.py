"""List the garbage in a store, and remove it."""

import re
from collections import Counter
from datetime import UTC, datetime, timedelta

from rich.console import Console
from rich.table import Table

from expandr_core.errors import DataError
from expandr_core.store.garbage import find_garbage, remove_garbage
from expandr_core.store.run_records import REPORTS
from expandr_core.store.store import Store

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def parse_age(text: str) -> timedelta:
    """Parse an age.

    >>> parse_age("36h")
    datetime.timedelta(days=1, seconds=43200)

    Raises:
        DataError: if the text is not an age.
    """
    match = re.fullmatch(r"(\d{1,5})([hdw])", text)
    if not match:
        raise DataError(f"{text!r} is not an age; write it as 12h, 30d or 8w")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def collect_garbage(
    out: Console, store: Store, keep_runs: int | None, older_than: timedelta, delete: bool
) -> None:
    """Print the garbage with sizes and ages; remove it if `delete` is set."""
    now = datetime.now(UTC)
    found = find_garbage(store, keep_runs, now - older_than)
    table = Table("what", "which", "size", "age")
    for each in found:
        days = (now - each.changed) / timedelta(days=1)
        table.add_row(each.kind, each.name, f"{each.size / 1e6:,.1f} MB", f"{days:.1f} days")
    if found:
        out.print(table)
    errors = dict(zip(found, remove_garbage(found), strict=True)) if delete else {}
    for each, error in errors.items():
        if error:
            out.print(f"left: {each.kind} {each.name}: {error}", soft_wrap=True)
    removed = [each for each in found if not errors.get(each)]
    kinds = Counter(each.kind for each in removed)
    total = sum(each.size for each in removed)
    listed = ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "nothing"
    index = f"{store.root}/{REPORTS}/index.html"
    if delete and not {"run", "report"}.isdisjoint(kinds) and store.filesystem.exists(index):
        from expandr_core.reports.files import keep_index

        keep_index(store)
    verb = "removed" if delete else "would be removed"
    out.print(
        f"{verb}: {listed}; {total / 1e6:,.1f} MB in {store.url}", highlight=False, soft_wrap=True
    )
    if found and not delete:
        out.print("This was a dry run; `--delete` removes the garbage.")
