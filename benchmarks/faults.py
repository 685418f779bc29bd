"""Break a cluster again and again while the joint loop runs on it, and check that nothing is lost.

    python -m benchmarks.faults [--faults 20] [--preset tiny] [--seed 0] [--folder F] [--port 4300]

Starts a local cluster and runs the loop once undisturbed. Then it runs the loop over and over, each
time in a store that already has the artifacts of the steps before a randomly chosen one. Soon after
the start, within the time of a few steps, it causes one fault:

    worker    kill -9 of a worker with the flows it runs     supervisord starts another
    parent    kill -9 of the joint loop's own process        one Retry
    api       kill -9 of the Prefect API                     restarted after 20 s
    redis     kill -9                                        restarted at once
    postgres  kill -9                                        restarted at once
    s3-500    all S3 servers except the proxy are down for 30 s; the proxy answers 5xx
    s3-hang   the S3 proxy is stopped for 30 s; connections hang

A run that does not succeed gets one Retry, as if by a click in the UI. Prints a table. Exits with 0
only if every run completed with the same digests, no finished artifact was written again, and no flow
run was still Running ten minutes after its fault.
"""

import argparse
import contextlib
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil

from infra.local.cluster import Cluster
from infra.local.lifecycle import api, down, supervisor, up

PATIENCE = 1200  # seconds for a run with one fault
WHOLE = "s3://expandr/whole"
NOT_OVER = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}


@dataclass
class Outcome:
    """What became of one run."""

    state: str
    seconds: float
    retries: int
    stage: str
    redone: int
    equal: bool
    longest: float


def ask(cluster: Cluster, method: str, path: str, content: Any = None) -> Any:
    """Ask the API, for as long as it takes: it may be what is broken."""
    while True:
        with contextlib.suppress(httpx.HTTPError):
            return api(cluster, method, path, content)
        time.sleep(1)


def half_done(whole: str, store: str) -> str:
    """Copy the artifacts of the steps before a random one; return the title of that one."""
    from expandr_core.store.filesystems import open_filesystem
    from tasks.stage import open_store

    opened = open_store(whole)
    steps = opened.records()[-1]["steps"]
    number = random.randrange(len(steps))
    keys = {step["artifact"]["key"] for step in steps[:number]}
    keys |= {part["key"] for key in set(keys) for part in opened.manifest(key)["parts"]}
    files, _ = open_filesystem(whole)
    for key in sorted(keys):
        source, target = f"{whole}/artifacts/{key}", f"{store}/artifacts/{key}"
        for path in map(str, files.find(source)):
            files.copy(path, f"{target}/{path.partition(key)[2].lstrip('/')}")
    return steps[number]["title"]


def start(cluster: Cluster, preset: str, store: str) -> str:
    """Start the joint loop on the cluster; return the run's id."""
    deployment = ask(cluster, "GET", "/deployments/name/joint-loop/manual")
    # The placement that a form begins with means "here" for the preset tiny; another goes to the pools.
    placement = {**deployment["parameters"]["placement"], "runs_at_once": 4}
    parameters = {"preset": preset, "store": store, "placement": placement}
    path = f"/deployments/{deployment['id']}/create_flow_run"
    return ask(cluster, "POST", path, {"parameters": parameters})["id"]


def manifests(store: str) -> dict[str, str]:
    """Return the ETag of each manifest, by key: it changes if an artifact is written again."""
    from expandr_core.store.filesystems import open_filesystem

    filesystem, path = open_filesystem(f"{store}/artifacts")
    files: Any = filesystem.find(path, detail=True)
    return {
        path.split("/")[-2]: info["ETag"]
        for path, info in files.items()
        if path.endswith("/manifest.json")
    }


def digests(store: str) -> dict[str, str]:
    """Return the digest of each artifact, by key."""
    from tasks.stage import open_store

    opened = open_store(store)
    return {key: opened.manifest(key)["digest"] for key in opened.keys()}  # noqa: SIM118


def workers(cluster: Cluster) -> list[psutil.Process]:
    """Return the workers' processes."""
    infos = supervisor(cluster).getAllProcessInfo()
    pids = [
        info["pid"]
        for info in infos
        if info["name"].rpartition("-")[0] in ("cpu", "infer", "train")
    ]
    return [psutil.Process(pid) for pid in pids if pid]


def process(cluster: Cluster, name: str) -> psutil.Process:
    """Return the process of one of the cluster's programs."""
    return psutil.Process(supervisor(cluster).getProcessInfo(name)["pid"])


def kill_worker(cluster: Cluster, run: str) -> None:
    """Kill a worker that has something to do, with its flows."""
    busy = [worker for worker in workers(cluster) if worker.children()]
    chosen = random.choice(busy or workers(cluster))
    for each in [chosen, *chosen.children(recursive=True)]:
        each.kill()


def kill_parent(cluster: Cluster, run: str) -> None:
    """Kill the joint loop's own process; its worker and the stages on pools live on."""
    for worker in workers(cluster):
        for each in worker.children():
            if each.environ().get("PREFECT__FLOW_RUN_ID") == run:
                os.killpg(each.pid, signal.SIGKILL)


def kill_api(cluster: Cluster, run: str) -> None:
    """Kill the API, and start it again after 20 s."""
    process(cluster, "api").kill()
    with contextlib.suppress(Exception):  # supervisord may be about to start it again
        supervisor(cluster).stopProcess("api")
    time.sleep(20)
    supervisor(cluster).startProcess("api", False)


def kill_redis(cluster: Cluster, run: str) -> None:
    """Kill Redis."""
    process(cluster, "redis").kill()


def kill_postgres(cluster: Cluster, run: str) -> None:
    """Kill PostgreSQL."""
    process(cluster, "postgres").kill()


def fail_s3(cluster: Cluster, run: str) -> None:
    """Let S3 answer 5xx for 30 s."""
    servers, control = ["s3-object", "s3-container", "s3-account"], supervisor(cluster)
    for name in servers:
        control.stopProcess(name)
    time.sleep(30)
    for name in servers:
        control.startProcess(name, False)


def hang_s3(cluster: Cluster, run: str) -> None:
    """Let connections to S3 hang for 30 s."""
    proxy = process(cluster, "s3")
    family = [proxy, *proxy.children(recursive=True)]
    for each in family:
        each.suspend()
    time.sleep(30)
    for each in family:
        each.resume()


FAULTS = {
    "worker": kill_worker,
    "parent": kill_parent,
    "api": kill_api,
    "redis": kill_redis,
    "postgres": kill_postgres,
    "s3-500": fail_s3,
    "s3-hang": hang_s3,
}


def at_work(cluster: Cluster) -> str:
    """Name what runs now, the innermost first."""
    runs = ask(cluster, "POST", "/flow_runs/filter", {"flow_runs": {"state": NOT_OVER}})
    names = [run["name"] for run in runs if run["parent_task_run_id"]]
    return names[0] if names else "a stage in the loop's own process"


def follow(cluster: Cluster, run: str) -> Iterator[str]:
    """Yield the name of the run's state every second."""
    while True:
        yield ask(cluster, "GET", f"/flow_runs/{run}")["state"]["name"]
        time.sleep(1)


def finish(cluster: Cluster, run: str) -> tuple[str, int]:
    """Wait for the run's end; retry it once. Return its last state, and the number of retries."""
    retries, deadline = 0, time.monotonic() + PATIENCE
    for state in follow(cluster, run):
        if state == "Completed" or time.monotonic() > deadline:
            return state, retries
        if state in ("Failed", "Crashed", "Cancelled", "TimedOut"):
            if retries:
                return state, retries
            time.sleep(8)  # the runner and its worker both report a crash; a retry between is lost
            again = {"type": "SCHEDULED", "name": "AwaitingRetry"}
            path = f"/flow_runs/{run}/set_state"
            ask(cluster, "POST", path, {"state": again, "force": True})
            retries = 1
    raise AssertionError("unreachable")


def longest_running(cluster: Cluster, since: datetime) -> float:
    """Wait until nothing goes on; return the seconds from the fault to the last run's end."""
    while True:
        runs = ask(cluster, "POST", "/flow_runs/filter", {"flow_runs": {"state": NOT_OVER}})
        seconds = (datetime.now(UTC) - since).total_seconds()
        if not runs or seconds > 900:
            return seconds
        time.sleep(2)


def disturbed(
    cluster: Cluster, preset: str, kind: str, delay: float, reference: dict[str, str], store: str
) -> Outcome:
    """Run the loop with one fault."""
    first = half_done(WHOLE, store)
    started = time.monotonic()
    run = start(cluster, preset, store)
    for state in follow(cluster, run):
        if state == "Running":
            break
    time.sleep(delay)
    stage = f"{at_work(cluster)} (from {first!r})"
    before, when = manifests(store), datetime.now(UTC)
    FAULTS[kind](cluster, run)
    state, retries = finish(cluster, run)
    seconds = time.monotonic() - started
    after = manifests(store)
    redone = sum(after.get(key) != etag for key, etag in before.items())
    longest = longest_running(cluster, when)
    return Outcome(state, seconds, retries, stage, redone, digests(store) == reference, longest)


def main() -> int:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--only", choices=FAULTS, nargs="*", help="These faults alone.")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--port", type=int, default=4300)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="expandr-faults-"))
    folder.chmod(0o755)  # PostgreSQL's user must be able to enter
    cluster = Cluster(folder=folder, port=arguments.port)
    os.environ.update(cluster.client_environment())
    up(cluster, print)
    from deployments.deploy import deploy

    deploy("s3://expandr/store", "process", "UTC", timedelta(seconds=120), "", True, False)
    print(f"cluster in {folder}; the loop once undisturbed", flush=True)
    begun = time.monotonic()
    state, retries = finish(cluster, start(cluster, arguments.preset, WHOLE))
    duration = time.monotonic() - begun
    reference = digests(WHOLE)
    print(f"{state} in {duration:.0f} s, {retries} retries, {len(reference)} artifacts", flush=True)
    good = state == "Completed"

    random.seed(arguments.seed)
    kinds = list(itertools.islice(itertools.cycle(arguments.only or FAULTS), arguments.faults))
    random.shuffle(kinds)
    print(f"{'':>3} {'fault':<9}{'after':>7}  {'state':<10}{'seconds':>8}{'retries':>8}"
          f"{'redone':>7}{'equal':>6}{'over after':>11}  what was at work")  # fmt: skip
    for number, kind in enumerate(kinds, 1):
        delay = random.uniform(2, max(10, duration / 5))
        store = f"s3://expandr/fault-{arguments.seed}-{number}"
        out = disturbed(cluster, arguments.preset, kind, delay, reference, store)
        ok = out.state == "Completed" and out.equal and not out.redone and out.longest <= 600
        good &= ok
        print(f"{number:>3} {kind:<9}{delay:>6.0f}s  {out.state:<10}{out.seconds:>8.0f}{out.retries:>8}"
              f"{out.redone:>7}{'yes' if out.equal else 'NO':>6}{out.longest:>10.0f}s  {out.stage}"
              f"{'' if ok else '  <-- WRONG'}", flush=True)  # fmt: skip
    down(cluster, print, now=True, patience=0)
    print("all good" if good else "NOT all good")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
