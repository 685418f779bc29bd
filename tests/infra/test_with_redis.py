"""A program that ends when its connections to Redis have been interrupted, on a real Redis."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outside import INFRA, program
from ports import kept_port
from redis import Redis
from redis.exceptions import ConnectionError
from waiting import SECONDS, wait_until

SLEEP = "echo $$ > pid; exec sleep 600"
WORKER = """
import asyncio, os, pathlib, signal, sys
from docket import Docket, Worker

async def work():
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    pathlib.Path("done").touch()

async def main():
    async with Docket(name="prefect", url=sys.argv[1]) as docket, Worker(docket) as worker:
        docket.register(work)
        await docket.add(work, key="work")()
        await worker.run_until_finished()

asyncio.run(main())
"""


class Server:
    """A Redis that is absent at times."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.port = folder, port
        self.client = Redis(port=port)

    def address(self, database: int) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        command = [program("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1"]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)
        wait_until(self.answers)

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except ConnectionError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis(tmp_path) -> Iterator[Server]:
    with kept_port() as port:
        server = Server(tmp_path, port)
        server.start()
        yield server
        server.kill()


@pytest.fixture
def run(redis, tmp_path) -> Iterator[Callable[[str], subprocess.Popen]]:
    started = []

    def start(script: str) -> subprocess.Popen:
        command = [sys.executable, INFRA / "with_redis.py", "sh", "-c", script]
        addresses = {
            "PREFECT_REDIS_MESSAGING_URL": redis.address(0),
            "PREFECT_SERVER_DOCKET_URL": redis.address(1),
        }
        started.append(subprocess.Popen(command, cwd=tmp_path, env=os.environ | addresses))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def command_runs(folder: Path) -> bool:
    try:
        os.kill(int((folder / "pid").read_text()), 0)
    except (ProcessLookupError, FileNotFoundError, ValueError):
        return False
    return True


def test_it_ends_with_its_command_after_redis_was_killed_but_not_before_redis_is_back(
    redis, run, tmp_path
):
    running = run(SLEEP)
    wait_until(lambda: command_runs(tmp_path))
    redis.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(4)
    assert command_runs(tmp_path)
    redis.start()
    assert running.wait(SECONDS) == 1
    assert not command_runs(tmp_path)


def test_it_ends_after_an_interruption_that_redis_itself_survived(redis, run, tmp_path):
    running = run(SLEEP)
    wait_until(lambda: command_runs(tmp_path))
    time.sleep(2)
    assert running.poll() is None
    redis.client.client_kill_filter(_type="normal", skipme=True)
    assert running.wait(SECONDS) == 1
    assert not command_runs(tmp_path)


def test_the_end_of_the_command_is_its_own(run):
    assert run("exit 3").wait(SECONDS) == 3


def test_a_stop_reaches_the_command(run, tmp_path):
    running = run("trap 'exit 5' TERM; echo $$ > pid; while :; do sleep 0.1; done")
    wait_until(lambda: command_runs(tmp_path))
    running.send_signal(signal.SIGTERM)
    assert running.wait(SECONDS) == 5


def test_a_stop_at_its_start_reaches_the_command(run):
    stop = "trap 'exit 5' TERM; kill -TERM $PPID; while :; do sleep 0.1; done"
    assert run(stop).wait(SECONDS) == 5


def test_what_a_dead_worker_had_claimed_is_done_at_once(redis, run, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    worker = [sys.executable, "worker.py", redis.address(1)]
    dead = subprocess.run([*worker, "die"], cwd=tmp_path, check=False)
    assert dead.returncode == -signal.SIGKILL
    assert run(f"exec {' '.join(worker)} live").wait(SECONDS) == 0
    assert (tmp_path / "done").exists()
