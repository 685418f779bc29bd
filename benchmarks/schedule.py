"""Run the joint loop on a schedule: compute once, then reuse everything, then change one row.

    python -m benchmarks.schedule [--folder F] [--port 4600]

Starts a local cluster, writes a small collection, and lets the deployment joint-loop/weekly run every
two minutes:

    1st run              makes everything
    2nd and 3rd run      every step is `Cached`, in under 60 s
    4th run              after a training row changed: makes only what follows from it, and of expand
                         only the changed shard
    a run longer than the interval: runs that come due meanwhile are cancelled (CANCEL_NEW)

Prints a line per run. Exits with 0 only if all of this held.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from infra.local.cluster import Cluster
from infra.local.lifecycle import api, down, up

STORE = "s3://expandr/scheduled"
OVER = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def write_collection(folder: Path) -> None:
    """Write a collection in BEIR layout: things with invented names, and questions about them."""
    chance = random.Random(0)
    syllables = ["ba", "do", "ki", "lu", "me", "no", "ra", "si", "tu", "ve"]
    names = sorted({"".join(chance.choices(syllables, k=3)) for _ in range(140)})[:120]
    colours, places = ["red", "blue", "green", "white"], ["hill", "lake", "wood", "town"]
    passages = [
        {"_id": f"d{n:03}", "title": name, "text": f"The {name} is {chance.choice(colours)} and "
         f"lives near the {chance.choice(places)}, as every {name} does."}
        for n, name in enumerate(names)
    ]  # fmt: skip
    queries = [
        {
            "_id": f"q{n:03}",
            "text": f"where does the {passage['title']} live",
            "metadata": {"entity": passage["title"]},
        }
        for n, passage in enumerate(passages)
    ]
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", passages), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, part in (("train", range(80)), ("dev", range(80, 100)), ("test", range(100, 120))):
        lines = [f"q{n:03}\td{n:03}\t1\n" for n in part]
        text = "query-id\tcorpus-id\tscore\n" + "".join(lines)
        (folder / "qrels" / f"{split}.tsv").write_text(text)


def change_a_training_row(folder: Path) -> None:
    """Word one training question differently."""
    path = folder / "queries.jsonl"
    path.write_text(path.read_text().replace("where does the", "in what place does the", 1))


def runs_of(cluster: Cluster, deployment: str) -> list[dict[str, Any]]:
    """Return the deployment's runs that are begun or over, oldest first."""
    content = {
        "deployments": {"id": {"any_": [deployment]}},
        "flow_runs": {"state": {"type": {"any_": [*OVER, "RUNNING"]}}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    return api(cluster, "POST", "/flow_runs/filter", content)


def next_run(cluster: Cluster, deployment: str, seen: set[str]) -> dict[str, Any]:
    """Wait for the end of the next run that is not cancelled."""
    while True:
        for run in runs_of(cluster, deployment):
            if run["id"] in seen or run["state_type"] not in OVER:
                continue
            seen.add(run["id"])
            if run["state_type"] != "CANCELLED":
                return run
        time.sleep(2)


def steps(cluster: Cluster, run: str) -> dict[str, str]:
    """Return the final state's name of each step of a run, by title."""
    content = {
        "flow_runs": {"id": {"any_": [run]}},
        "task_runs": {"subflow_runs": {"exists_": False}},
        "limit": 200,
    }
    time.sleep(5)  # the server writes them down a little later
    found = api(cluster, "POST", "/task_runs/filter", content)
    return {step["name"]: step["state_name"] for step in found}


def shards(prefix: str) -> int:
    """Count the shards of a stage in the store."""
    from tasks.stage import open_store

    return len(open_store(STORE).keys(prefix))


def main() -> int:
    """Run all, and print what happened."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--port", type=int, default=4600)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="expandr-schedule-"))
    folder.chmod(0o755)  # PostgreSQL's user must be able to enter
    data = folder / "collection"
    write_collection(data)
    cluster = Cluster(folder=folder, port=arguments.port)
    os.environ.update(cluster.client_environment())
    up(cluster, print)
    from deployments.deploy import deploy

    deploy(STORE, "process", "UTC", timedelta(seconds=120), "", True, False)
    deployment = api(cluster, "GET", "/deployments/name/joint-loop/weekly")
    options = {
        "data": {"collection": str(data)},
        "expand": {"queries_per_shard": 8},
        "retriever": {"max_tokens": 64},
    }
    parameters = {**deployment["parameters"], "preset": "tiny", "options": options}
    every = {"interval": 120, "anchor_date": "2026-01-01T00:00:00Z", "timezone": "UTC"}
    schedule = {"schedule": every, "active": True, "parameters": parameters}
    path = f"/deployments/{deployment['id']}"
    api(cluster, "POST", f"{path}/schedules", [schedule])
    seen: set[str] = set()
    good = True

    def report(what: str, ok: bool) -> dict[str, str]:
        nonlocal good
        run = next_run(cluster, deployment["id"], seen)
        states = steps(cluster, run["id"])
        made = [title for title, state in states.items() if state != "Cached"]
        held = run["state_type"] == "COMPLETED" and (
            not ok or (not made and run["total_run_time"] < 60)
        )
        good &= held
        print(f"{what:<28}{run['state_name']:<11}{run['total_run_time']:6.0f} s, {len(made)} of "
              f"{len(states)} steps made{'' if held else '   <-- WRONG'}", flush=True)  # fmt: skip
        return states

    report("1st run", False)
    report("2nd run", True)
    report("3rd run", True)
    before = shards("expand_shard")
    change_a_training_row(data)
    states = report("4th run, one row changed", False)
    untouched = [
        name
        for name in states
        if "tiny" in name or "BM25" in name or "encode the corpus, query" in name
    ]
    good &= all(states[name] == "Cached" for name in untouched) and bool(untouched)
    print(f"  untouched and Cached: {', '.join(untouched)}; new shards of expand: "
          f"{shards('expand_shard') - before}")  # fmt: skip

    longer = {**parameters, "fresh": True}
    for each in api(cluster, "GET", f"{path}/schedules"):
        if each["schedule"].get("interval") == 120:
            api(cluster, "PATCH", f"{path}/schedules/{each['id']}", {"parameters": longer})
    time.sleep(420)
    cancelled = [
        run for run in runs_of(cluster, deployment["id"]) if run["state_type"] == "CANCELLED"
    ]
    print(f"longer runs than the interval: {len(cancelled)} cancelled because one was going on")
    down(cluster, print, now=True, patience=0)
    good &= bool(cancelled)
    print("all good" if good else "NOT all good")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
