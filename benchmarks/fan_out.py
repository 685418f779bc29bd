"""Measure what it costs to hand out shards to the workers of a pool.

    python -m benchmarks.fan_out [--folder F] [--port 4500] [--store S]

Starts a local cluster with four workers on gpu-infer and runs a stage whose shards only sleep
(sleep_stage.py, copied next to the real stages in a copy of this source tree). The parent runs
outside the pool.

    1. 200 shards of 0.5 s: 25 s would be ideal, 60 s more are allowed
    2. the same again: everything is a cache hit
    3. the same with another seed; one worker is killed half-way, with its flow: no finished shard is
       made again
    4. 2,000 shards without work: the server's memory, response time and event backlog before and after

Exits with 0 only if 1 is in time, 3 loses nothing, and 4 leaves no backlog.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import redis

from infra.local.cluster import Cluster
from infra.local.lifecycle import api, down, supervisor, up

ROOT = Path(__file__).parents[1]
WORKERS = 4


def parent(store: str, shards: int, seconds: float, seed: int) -> None:
    """Run the stage from a flow, placed on the pool."""
    from prefect import flow

    from expandr_core.options.loop import JointLoopOptions
    from expandr_core.runtime.runner import module_of
    from tasks.pipeline import Pipeline
    from tasks.placement import Placement

    @flow(name="fan-out")
    def fan_out() -> None:
        run_options = JointLoopOptions(seed=seed)
        pipeline = Pipeline(store, run_options, Placement(generate="gpu-infer"))
        options = module_of("sleep").OPTIONS(shards=shards, seconds=seconds)
        started = time.monotonic()
        pipeline.step("sleep", {}, "sleep", options=options)
        print(f"SECONDS {time.monotonic() - started}")

    fan_out()


def begin(store: str, shards: int, seconds: float, seed: int) -> subprocess.Popen:
    """Start a parent as a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.fan_out",
        "--parent",
        store,
        str(shards),
        str(seconds),
        str(seed),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=os.environ["PYTHONPATH"].split(":")[0],
    )


def seconds_of(running: subprocess.Popen) -> float:
    """Wait for a parent; return how long its stage took."""
    output, _ = running.communicate()
    found = [line.split()[1] for line in output.splitlines() if line.startswith("SECONDS")]
    if not found:
        raise SystemExit(output[-3000:])
    return float(found[0])


def written(store: str, seed: int) -> dict[str, str]:
    """Return when each finished shard of a seed was written, by key."""
    from tasks.stage import open_store

    opened = open_store(store)
    found = {key: opened.manifest(key) for key in opened.keys("sleep_shard")}
    return {key: each["created"] for key, each in found.items() if each["seed"] == seed}


def kill_a_worker(cluster: Cluster) -> None:
    """Kill a worker together with the flow that it runs."""
    pid = supervisor(cluster).getProcessInfo("infer-1")["pid"]
    for each in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        each.kill()


def server(cluster: Cluster) -> dict[str, float]:
    """Measure the server: memory, time of an answer, messages that wait."""
    found: dict[str, float] = {}
    for name in ("api", "services"):
        pid = supervisor(cluster).getProcessInfo(name)["pid"]
        found[f"{name} MB"] = psutil.Process(pid).memory_info().rss / 1e6
    started = time.monotonic()
    for _ in range(20):
        api(cluster, "POST", "/flow_runs/filter", {"limit": 20})
    found["answer ms"] = (time.monotonic() - started) / 20 * 1000
    found["waiting events"] = backlog(cluster)
    return found


def backlog(cluster: Cluster) -> int:
    """Count the messages that no consumer has taken or acknowledged."""
    password = cluster.secrets["EXPANDR_REDIS_SECRET"]
    streams: Any = redis.Redis(port=cluster.ports["redis"], password=password)
    waiting = 0
    for stream in streams.scan_iter(_type="stream"):
        waiting += sum(
            (group["lag"] or 0) + group["pending"] for group in streams.xinfo_groups(stream)
        )
    return waiting


def source_with_sleep(folder: Path) -> Path:
    """Copy the source tree, and add the stage that sleeps."""
    tree = folder / "source"
    for package in ("expandr_core", "tasks", "flows", "deployments"):
        shutil.copytree(ROOT / package, tree / package, dirs_exist_ok=True)
    shutil.copy(ROOT / "benchmarks/sleep_stage.py", tree / "expandr_core/stages/sleep.py")
    return tree


def main() -> int:
    """Run the four, and print what they took."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--port", type=int, default=4500)
    parser.add_argument("--store", default="s3://expandr/fan-out")
    parser.add_argument("--parent", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.parent:
        store, shards, seconds, seed = arguments.parent
        parent(store, int(shards), float(seconds), int(seed))
        return 0

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="expandr-fan-out-"))
    folder.chmod(0o755)  # PostgreSQL's user must be able to enter
    counts = {"cpu": 0, "gpu-infer": WORKERS, "gpu-train": 0}
    cluster = Cluster(folder=folder, port=arguments.port, workers=counts)
    os.environ |= cluster.client_environment()
    os.environ["PYTHONPATH"] = f"{source_with_sleep(folder)}:{ROOT}"
    up(cluster, print)
    from deployments.deploy import deploy

    store = arguments.store
    deploy(store, "process", "UTC", timedelta(seconds=100), "", True, False)

    first = seconds_of(begin(store, 200, 0.5, 0))
    print(
        f"1. 200 shards of 0.5 s on {WORKERS} workers: {first:.1f} s (ideal 25, allowed 85)",
        flush=True,
    )
    print(f"2. again, all found: {seconds_of(begin(store, 200, 0.5, 0)):.1f} s", flush=True)

    running = begin(store, 200, 0.5, 1)
    while len(before := written(store, 1)) < 100 and running.poll() is None:
        time.sleep(0.5)
    kill_a_worker(cluster)
    third = seconds_of(running)
    after = written(store, 1)
    redone = sum(after.get(key) != when for key, when in before.items())
    print(f"3. a worker killed after {len(before)} shards: {third:.1f} s, {redone} of them made again",
          flush=True)  # fmt: skip

    idle = server(cluster)
    fourth = seconds_of(begin(store, 2000, 0, 2))
    busy = server(cluster)
    print(f"4. 2,000 shards of no work: {fourth:.1f} s")
    for name, value in idle.items():
        print(f"   {name:<16}{value:10.1f} before{busy[name]:10.1f} after")
    deadline = time.monotonic() + 60
    while (left := backlog(cluster)) and time.monotonic() < deadline:
        time.sleep(1)
    print(f"   {left} events wait a while later")
    down(cluster, print, now=True, patience=0)
    return 0 if first <= 85 and not redone and not left else 1


if __name__ == "__main__":
    sys.exit(main())
