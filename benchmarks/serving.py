"""What `expandr serve` can bear: 50 clients on this machine, against one that asks one at a time.

    python -m benchmarks.serving STORE [--run NAME] [--seconds 60] [--small]

Both sides ask the same server queries that it has never seen, so nothing is remembered: one client, all,
all, one, and so three times, so that other work on the machine meets both. A last phase of `--seconds`
mixes in the collection's own queries, half of all, which are soon remembered. Prints throughput,
latency, statuses, and the server's memory.
"""

import argparse
import asyncio
import collections
import itertools
import json
import random
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import psutil

CLIENTS = 50
HEAD = b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HEAD += b"Content-Length: %d\r\n\r\n"
ONE_AND_MANY = (1, CLIENTS, CLIENTS, 1) * 3


class Answers(NamedTuple):
    """Seconds of each request, statuses, how many expansions were remembered, and seconds in all."""

    seconds: list[float]
    statuses: collections.Counter[str]
    remembered: int
    wall: float

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.wall

    def joined(self, other: "Answers") -> "Answers":
        return Answers(
            self.seconds + other.seconds,
            self.statuses + other.statuses,
            self.remembered + other.remembered,
            self.wall + other.wall,
        )

    def say(self, what: str) -> None:
        ordered = sorted(self.seconds)
        median, p95 = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95))
        statuses = ", ".join(f"{count} x {status}" for status, count in self.statuses.items())
        print(
            f"{what}: {self.per_second:.1f} requests/s, median {median * 1000:.0f} ms, "
            f"p95 {p95 * 1000:.0f} ms, {self.remembered / len(ordered):.0%} remembered; {statuses}"
        )


async def client(port: int, queries: "Queries", until: float, answers: Answers) -> None:
    """Ask one query after the other over one connection; plain sockets leave the cores to the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        body = json.dumps({"query": next(queries)}).encode()
        start = time.monotonic()
        writer.write(HEAD % len(body) + body)
        said = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(said.partition("content-length: ")[2].partition("\r\n")[0])
        found = await reader.readexactly(length)
        answers.seconds.append(time.monotonic() - start)
        status = said.split()[1]
        answers.statuses[status] += 1
        if status == "200" and json.loads(found)["remembered"]:
            queries.remembered += 1
    writer.close()


class Queries:
    """Queries, endlessly: new ones, and with a probability one of the collection's."""

    def __init__(self, own: list[str], share: float, seed: int):
        self._own, self._share, self._random = own, share, random.Random(seed)
        self._words = sorted({word for text in own for word in text.split()})
        self._numbers = itertools.count()
        self._seed, self.remembered = seed, 0

    def __next__(self) -> str:
        text = self._random.choice(self._own)
        if self._random.random() < self._share:
            return text
        word = self._random.choice(self._words)
        return f"{text} {word} {self._seed}-{next(self._numbers)}"


def phase(
    port: int, own: list[str], clients: int, seconds: float, share: float, seed: int
) -> Answers:
    """Let so many clients ask for so long."""

    async def ask() -> Answers:
        queries = Queries(own, share, seed)
        start = time.monotonic()
        answers = Answers([], collections.Counter(), 0, 0)
        until = start + seconds
        await asyncio.gather(*(client(port, queries, until, answers) for _ in range(clients)))
        return answers._replace(remembered=queries.remembered, wall=time.monotonic() - start)

    return asyncio.run(ask())


def start_server(store: str, run: str, port: int) -> subprocess.Popen[bytes]:
    """Start the server, and wait until it is ready."""
    command = [sys.executable, "-m", "expandr_cli.main", "serve", "--store", store]
    command += ["--port", str(port), *(["--run", run] if run else [])]
    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server has ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store")
    parser.add_argument("--run", default="")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--small", action="store_true", help="five seconds in all")
    options = parser.parse_args()
    short, long = (0.4, 1) if options.small else (options.seconds / 12, options.seconds)
    own = own_queries(options.store, options.run)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start_server(options.store, options.run, port)
    try:
        server = psutil.Process(process.pid)
        phase(port, own, CLIENTS, short, 0, 0)  # warm
        sides = {clients: Answers([], collections.Counter(), 0, 0) for clients in (1, CLIENTS)}
        for seed, clients in enumerate(ONE_AND_MANY, 1):
            found = phase(port, own, clients, short, 0, seed)
            sides[clients] = sides[clients].joined(found)
        for clients, found in sides.items():
            found.say(f"{clients:>2} at a time, new queries")
        times = sides[CLIENTS].per_second / sides[1].per_second
        print(f"throughput of {CLIENTS} clients over one at a time: {times:.1f} x")
        before = server.memory_info().rss
        found = phase(port, own, CLIENTS, long, 0.5, 9)
        after = server.memory_info().rss
        found.say(f"{CLIENTS} at a time for {long:g} s, half of them the collection's queries")
        errors = sum(count for status, count in found.statuses.items() if status[0] == "5")
        print(f"5xx: {errors}; memory {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after")
    finally:
        process.terminate()
        process.wait(90)
        print(f"the server ended with status {process.returncode}")


def own_queries(store: str, run: str) -> list[str]:
    """Return the collection's dev and test queries."""
    from expandr_cli.search import served
    from expandr_core.serving.opened import Opened
    from flows.champions import chosen_run
    from tasks.stage import open_store

    opened = open_store(store)
    return sorted(Opened(opened, served(opened, chosen_run(opened, run, print)), None).judged)


if __name__ == "__main__":
    main()
