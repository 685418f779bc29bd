"""List the runs that a store knows: those that are over, that go on, and that failed."""

import platform
from datetime import datetime
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from deployments.plan import TAG
from expandr_core.errors import DataError
from expandr_core.evaluation.comparison import read_comparison
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.evaluation.render import EFFECTS
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store


def print_runs(out: Console, store: Store, limit: int) -> None:
    """Print the latest runs, the newest last; what is not known of an older one stays empty."""
    runs = [{"state": "completed", **record} for record in store.records()]
    runs += [{**note, "state": state_of(note)} for note in store.notes()]
    runs.sort(key=lambda run: str(run.get("name", "")))
    table = Table(box=None)
    for title in ("run", "state", "config", "preset", "data", "headline"):
        names = [str(run.get("name", "")) for run in runs] if title == "run" else []
        width = min(40, max(map(len, [title, *names])))  # a name is there to be copied
        table.add_column(title, overflow="fold", no_wrap=title == "state", min_width=width)
    for run in runs[-limit:]:
        data = run.get("data") or _data(run)
        cells = (
            run.get("name", "?"),
            run["state"],
            ", ".join(_said(run)),
            run.get("preset", ""),
            data,
            run.get("message", "") or _headline(store, run),
        )
        table.add_row(*(str(cell) for cell in cells))
    if not runs:
        out.print(f"no runs in {store.url}", highlight=False)
        return
    out.print(table)
    if len(runs) > limit:
        out.print(f"and {len(runs) - limit} before; --limit shows more", highlight=False)


def _said(run: dict[str, Any]) -> list[str]:
    """Return the tags of a run, which are a set: the config first, then what changed it."""
    tags = [tag for tag in run.get("tags", []) if tag != TAG]
    return sorted(tags, key=lambda tag: ("=" in tag, tag))


def state_of(note: dict[str, Any]) -> str:
    """Tell a run that goes on from one that was killed, if it was on this machine."""
    state = str(note.get("state", "?"))
    if state != "running" or note.get("host") != platform.node():
        return state
    try:
        begun = psutil.Process(int(note["process"])).create_time()
    except (psutil.Error, KeyError, ValueError):
        return "killed"
    started = datetime.fromisoformat(note["started"]).timestamp()
    return state if begun <= started else "killed"  # else another process has its number by now


def _data(record: dict[str, Any]) -> str:
    """Name what a recorded run worked on."""
    if "datasets" in record:
        return ", ".join(record["datasets"])
    data = record.get("options", {}).get("data", {})
    return str(data.get("collection") or data.get("triples") or "")


def _headline(store: Store, run: dict[str, Any]) -> str:
    """Say in a line what a run brought."""
    if "report" not in run:
        return ""
    try:
        comparison = read_comparison(store.local(Artifact(**run["report"])))
        return (
            _outcome(comparison) if comparison["kept"] else comparison["verdict"]["sentences"][-1]
        )
    except (DataError, OSError, ValueError, KeyError, TypeError) as error:
        return f"its report cannot be read ({type(error).__name__})"


def _outcome(comparison: dict[str, Any]) -> str:
    """Compare what is kept of the loop with its baseline."""
    kept = comparison["kept"]["expanded"]
    rows = {row["system"]: row for row in comparison["results"]}
    [system] = [system for system in comparison["systems"] if system["name"] == kept]
    before, after = (rows[name][comparison["metric"]] for name in (system["baseline"], kept))
    return (
        f"{MEASURES[comparison['metric']].title} on {rows[kept]['dataset']} {before:.3f} -> {after:.3f} "
        f"({system['title']}): {EFFECTS[rows[kept]['effect']].removeprefix('* ')}"
    )
