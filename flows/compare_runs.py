"""Compare runs, and leave the table in Prefect."""

from collections.abc import Iterable
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from expandr_core.errors import DataError
from expandr_core.lineage.compare_runs import as_table
from expandr_core.lineage.compare_runs import compare_runs as compare
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.store.run_records import find_recorded
from tasks.progress import only_shown
from tasks.stage import open_store

TABLE = "run-comparison"  # key of the artifact


@flow(name="compare-runs")
def compare_runs(runs: tuple[str, ...], stores: tuple[str, ...] = ("store",)) -> dict[str, Any]:
    """Compare runs, the first with each of the others; the table is an artifact of this flow run.

    Args:
        runs: Their names, or the beginnings of these.
        stores: Folders or s3:// URLs that keep them.
    """
    compared = compare(find_all(runs, stores))
    with only_shown("the comparison"):
        description = f"nDCG@10 of {', '.join(compared['runs'])}, and what differs upstream"
        create_table_artifact(table=as_table(compared), key=TABLE, description=description)
    return compared


def find_all(runs: Iterable[str], stores: Iterable[str]) -> list[ComparedRun]:
    """Find runs by the beginnings of their names, each in the first store that has it.

    Raises:
        DataError: if there is no such run; it lists those that there are.
    """
    opened = [(store, store.records()) for store in map(open_store, stores)]
    found = []
    for name in runs:
        for store, records in opened:
            if run := find_recorded(records, name):
                found.append(ComparedRun(store, run))
                break
        else:
            names = [str(each.get("name", "?")) for _, records in opened for each in records]
            listed = "\n  ".join(names) or "none"
            raise DataError(f"there is no finished run {name!r}; there are:\n  {listed}")
    return found
