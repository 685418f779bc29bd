"""List the runs that a store knows: those that are over, that go on, and that failed."""

import csv
import json
import platform
from collections import defaultdict
from datetime import datetime
from statistics import mean
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployments.plan import TAG
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store


def print_runs(out: Console, store: Store, limit: int) -> None:
    """Print the latest runs, the newest last; what is not known of an older one stays empty."""
    runs = [{"state": "completed", **record} for record in store.records()]
    runs += [{**note, "state": _state(note)} for note in store.notes()]
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
        table.add_row(*(escape(str(cell)) for cell in cells))
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


def _state(note: dict[str, Any]) -> str:
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
    try:
        if "leaderboard" in run:
            return _best_system(store, Artifact(**run["leaderboard"]))
        return _gain(store, run) if "report" in run else ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its report cannot be read ({type(error).__name__})"


def _gain(store: Store, run: dict[str, Any]) -> str:
    """Compare the best round with the queries alone."""
    folder = store.local(Artifact(**run["report"]))
    systems = json.loads((folder / "report.json").read_text())["systems"]
    scores = {system["role"]: system["ndcg_at_10"] for system in systems}
    best, split = run["best_round"], systems[0]["split"]
    after = scores[f"round-{best}" if best else "untrained"]
    how = f"round {best}" if best else "no round was better than the start"
    return f"nDCG@10 on {split} {scores['query']:.3f} -> {after:.3f} ({how})"


def _best_system(store: Store, leaderboard: Artifact) -> str:
    """Name the system with the best mean over the datasets."""
    with (store.local(leaderboard) / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        scores[row["system"]].append(float(row["ndcg_at_10"]))
    system = max(scores, key=lambda name: mean(scores[name]))
    return f"nDCG@10 {mean(scores[system]):.3f}, best of {len(scores)} systems: {system}"
