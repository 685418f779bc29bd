"""Run Prefect's background services until their connection to Redis breaks.

    python with_redis.py prefect server services start

The services do reconnect. But the work they had claimed stands still until their queue considers it
abandoned, after five to seven minutes, during which nobody notices dead and late runs (measured on
3.8.8, after a restart of Redis and after `CLIENT KILL` alike). Newly started services wait just as long
for what the old ones had claimed. So when Redis answers again, this program ends the services and then
itself, and systemd, Docker or Kubernetes starts both again. Before it starts services, it releases every
claim. That is why only one such program may run.

The addresses are PREFECT_REDIS_MESSAGING_URL and PREFECT_SERVER_DOCKET_URL.
"""

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any

from docket import Docket
from redis import Redis
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

POLL_SECONDS = 1
STOP_SECONDS = 10
STOPS = (signal.SIGTERM, signal.SIGINT)
DOCKET = "prefect"  # the name of the services' queue
AN_HOUR = 3_600_000  # in milliseconds


def main() -> int:
    """Return the command's exit status, or 1 if it was ended because of Redis."""
    free_what_is_claimed(Docket(name=DOCKET, url=os.environ["PREFECT_SERVER_DOCKET_URL"]))
    address = os.environ["PREFECT_REDIS_MESSAGING_URL"]
    redis = Redis.from_url(address, single_connection_client=True, socket_timeout=30)
    ours = connection(redis)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # until there is a command to pass them on to
    child = subprocess.Popen(sys.argv[1:], preexec_fn=let_stops_in)
    for each in STOPS:
        signal.signal(each, lambda number, _: child.send_signal(number))
    let_stops_in()
    while connection(redis) in (ours, None):
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = child.wait(POLL_SECONDS)
            return status if status >= 0 else 128 - status
    print("the connection to Redis was interrupted: ending, to be started again", file=sys.stderr)
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
    return 1


def let_stops_in() -> None:
    """Take SIGTERM and SIGINT again, those too that came meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def connection(redis: Redis) -> tuple[str, int] | None:
    """Return which process of Redis answers, on which connection of its own; None while none does."""
    try:
        return redis.info("server")["run_id"], redis.client_id()
    except (ConnectionError, TimeoutError):
        return None


def free_what_is_claimed(docket: Docket) -> None:
    """Let what dead workers have claimed look so old that a new one takes it when it starts."""
    with Redis.from_url(docket.url) as redis, contextlib.suppress(ResponseError):  # no queue yet
        stream, group = docket.stream_key, docket.worker_group_name
        claimed = redis.xpending_range(stream, group, "-", "+", 1000)
        messages: list[Any] = [each["message_id"] for each in claimed]
        if messages:
            redis.xclaim(stream, group, "nobody", 0, messages, idle=AN_HOUR, justid=True)
        redis.delete(docket.redelivery_sweep_key)


if __name__ == "__main__":
    sys.exit(main())
