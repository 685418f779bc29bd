"""Find the run that somebody names, or say why there is none."""

from collections.abc import Iterable

from expandr_core.errors import DataError
from expandr_core.store.registry import run_named
from expandr_core.store.run_records import RecordedRun, find_recorded, unfinished
from expandr_core.store.store import Store

_LISTED = 20


def find_run(stores: Iterable[Store], name: str, nth: int = 0) -> tuple[Store, RecordedRun]:
    """Find a finished run by the beginning of its name, the latest, or that of a registered model.

    Args:
        stores: in which to look, one after the other.
        name: or its beginning, "latest", or an alias such as "champion".
        nth: how many stores that have it to pass over, as long as there is another one.

    Raises:
        DataError: if there is none; it says whether the run has not finished, and lists those that have.
    """
    stores = list(stores)
    records = [(store, store.records()) for store in stores]
    found = [
        (store, run)
        for store, each in records
        if (run := find_recorded(each, run_named(store, name)))
    ]
    if found:
        return found[min(nth, len(found) - 1)]
    there = [str(each.get("name", "?")) for _, all_of in records for each in all_of][-_LISTED:]
    listed = "\n  ".join(reversed(there)) or "none"
    for store in stores:
        if said := unfinished(store.notes(), name):
            raise DataError(f"{said}; finished, the newest first:\n  {listed}")
    where = " or ".join(store.url for store in stores)
    raise DataError(
        f"there is no finished run {name!r} in {where}; there are, the newest first:\n  {listed}"
    )
