"""Measure what it costs to hand out shards to the workers of a pool.

    python -m benchmarks.fan_out [--small] [--s3]

Starts a Prefect server and three workers, and runs a stage of 200 shards that sleep 3 s each
(sleep_stage.py, copied next to the real stages in a copy of this source tree). A fourth worker starts
when a quarter is made; one of the first three is killed with its flow, by SIGKILL, when half is made.
Nothing tells Prefect of its death, so its run stays Running. Ideal is the time in which workers that
exist would make all shards without any other cost. Exits with 0 only if it took at most 1.3 times that,
no shard was made twice, and the store has what one process makes. With --s3 the store is on a server of
moto, where the claims of the killed worker expire a minute after its death. --small: 60 shards.

    python -m benchmarks.fan_out --cluster [--folder F] [--port 4500] [--store S]

Starts a local cluster with four workers on gpu-infer. The parent runs outside the pool.

    1. 200 shards of 0.5 s: 25 s would be ideal, 60 s more are allowed
    2. the same again: everything is a cache hit
    3. the same with another seed; one worker is killed half-way, with its flow: no finished shard is
       made again
    4. 2,000 shards without work: the server's memory, response time and event backlog before and after

Exits with 0 only if 1 is in time, 3 loses nothing, and 4 leaves no backlog.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import redis

from infra.local.cluster import Cluster
from infra.local.lifecycle import api, down, supervisor, up

ROOT = Path(__file__).parents[1]
WORKERS, POOL = 4, "gpu-infer"


def parent(store: str, shards: int, seconds: float, seed: int, log: str) -> None:
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
        options = module_of("sleep").OPTIONS(shards=shards, seconds=seconds, log=log)
        started = time.monotonic()
        pipeline.step("sleep", {}, "sleep", options=options)
        print(f"SECONDS {time.monotonic() - started}")

    fan_out()


def begin(store: str, shards: int, seconds: float, seed: int, log: str = "") -> subprocess.Popen:
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
        log,
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


@contextlib.contextmanager
def served(folder: Path, s3: bool) -> Iterator[str]:
    """Serve Prefect, with a pool for the stage, and perhaps S3; yield the store's URL."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    from deployments.apply import apply_deployment
    from deployments.plan import Deployment
    from deployments.pools import apply_pool
    from flows.stage import stage

    with prefect_test_harness(server_startup_timeout=120), contextlib.ExitStack() as held:
        os.environ["PREFECT_API_URL"] = PREFECT_API_URL.value()
        with get_client(sync_client=True) as client:
            apply_pool(client, POOL, "", "process", False)
            apply_deployment(client, Deployment(stage, POOL, POOL, "", {}), False)
        if not s3:
            yield str(folder / "store")
            return
        import boto3
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        held.callback(server.stop)
        host, port = server.get_host_and_port()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket/store"


class Worker:
    """A worker with a scratch folder of its own."""

    def __init__(self, folder: Path, name: str):
        home = folder / name
        home.mkdir()
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
        with (home / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--name", name, "--limit", "1"], cwd=home, stdout=log, stderr=log,
                env=os.environ | {
                    "PREFECT_HOME": str(home), "EXPANDR_SCRATCH": str(home / "scratch"),
                    "PREFECT_WORKER_QUERY_SECONDS": "1",
                },
            )  # fmt: skip

    def kill(self) -> None:
        """Kill it with the flow that it runs."""
        for each in [self.process, *psutil.Process(self.process.pid).children(recursive=True)]:
            each.kill()
        self.process.wait()


def online(count: int) -> None:
    """Wait until so many workers have been seen."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        while len(client.read_workers_for_work_pool(POOL, offset=0, limit=9)) < count:
            time.sleep(0.2)


def ideal(work: float, begins: list[float], ends: list[float]) -> float:
    """Return when workers that are there from `begins` to `ends` have worked for so long together.

    >>> ideal(10, [0, 0], [99, 99]), ideal(10, [0, 4], [99, 99]), ideal(10, [0, 0], [99, 3])
    (5.0, 7.0, 7.0)
    """
    low, high = 0.0, work + max(begins)
    for _ in range(60):
        middle = (low + high) / 2
        spent = sum(max(0, min(middle, e) - b) for b, e in zip(begins, ends, strict=True))
        low, high = (low, middle) if spent >= work else (middle, high)
    return round(high, 6)


def late_and_killed(folder: Path, shards: int, seconds: float, s3: bool) -> int:
    """Measure how long a pool takes of which one worker comes late and one is killed."""
    from tasks.stage import open_store

    os.environ["PYTHONPATH"] = f"{source_with_sleep(folder)}:{ROOT}"
    log = folder / "made"
    log.touch()

    def made() -> list[str]:
        return log.read_text().split()

    with served(folder, s3) as store, contextlib.ExitStack() as held:
        workers = [Worker(folder, name) for name in ("one", "two", "three")]
        online(3)
        running = begin(store, shards, seconds, 0, str(log))
        while not made():
            time.sleep(0.1)
        first = time.monotonic() - seconds
        while len(made()) < shards / 4:
            time.sleep(0.1)
        late = time.monotonic() - first
        workers.append(Worker(folder, "late"))
        held.callback(lambda: [each.kill() for each in workers if each.process.poll() is None])
        while len(made()) < shards / 2:
            time.sleep(0.1)
        workers[1].kill()
        killed, before = time.monotonic() - first, made()
        took = seconds_of(running)
        os.environ["EXPANDR_SCRATCH"] = str(folder / "scratch")
        opened = open_store(store)
        [key] = opened.keys("sleep-")
        parts = opened.shards(opened.verify(key))
    begins, ends = [0.0, 0.0, 0.0, late], [1e9, killed, 1e9, 1e9]
    best = ideal(shards * seconds, begins, ends)
    twice = len(made()) - len(set(made()))
    print(f"{shards} shards of {seconds:g} s, one of 4 workers late ({late:.0f} s), one killed "
          f"({killed:.0f} s, {len(before)} made): {took:.1f} s, ideal {best:.1f}, "
          f"ratio {took / best:.2f} (wanted 1.3); {twice} made twice")  # fmt: skip
    return 0 if took <= 1.3 * best and not twice and len(parts) == shards else 1


def main() -> int:
    """Run the four, and print what they took."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--port", type=int, default=4500)
    parser.add_argument("--store", default="s3://expandr/fan-out")
    parser.add_argument("--parent", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.parent:
        store, shards, seconds, seed, log = arguments.parent
        parent(store, int(shards), float(seconds), int(seed), log)
        return 0

    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="expandr-fan-out-"))
    if not arguments.cluster:
        return late_and_killed(folder, 60 if arguments.small else 200, 3, arguments.s3)
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
