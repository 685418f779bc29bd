"""Compare runs, and leave the table in Prefect."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from expandr_core.lineage.compare_runs import as_table
from expandr_core.lineage.compare_runs import compare_runs as compare
from expandr_core.lineage.compared_run import ComparedRun
from expandr_core.lineage.finding import find_run
from tasks.progress import only_shown
from tasks.stage import open_store

TABLE = "run-comparison"  # key of the artifact


@flow(name="compare-runs")
def compare_runs(runs: tuple[str, ...], stores: tuple[str, ...] = ("store",)) -> dict[str, Any]:
    """Compare runs, the first with each of the others; the table is an artifact of this flow run.

    Args:
        runs: Two or more: their names, the beginnings of these, or "latest".
        stores: Folders or s3:// URLs that keep them; the first that has a run counts.
    """
    compared = compare(find_all(runs, stores))
    with only_shown("the comparison"):
        description = f"nDCG@10 of {', '.join(compared['runs'])}, and what differs upstream"
        description = ". ".join([description, *compared["apart"].values()])
        create_table_artifact(table=as_table(compared), key=TABLE, description=description)
    return compared


def find_all(runs: Iterable[str], stores: Iterable[str]) -> list[ComparedRun]:
    """Find runs by the beginnings of their names, each in the first store that has it.

    A name that is given again is the run of the next store that has one, such as both `latest` runs.

    Raises:
        DataError: if there is no such run; it lists those that there are.
    """
    opened = [open_store(each) for each in dict.fromkeys(stores)]
    times, found = Counter[str](), []
    for name in runs:
        found.append(ComparedRun(*find_run(opened, name, times[name])))
        times[name] += 1
    return found
