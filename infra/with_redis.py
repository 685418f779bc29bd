"""Run a command for as long as its connections to Redis last: `python with_redis.py COMMAND...`

Prefect's background services reconnect, but what they were about to run when a connection broke stays
queued and is never run again: measured on 3.8.8, after a restart of Redis and after `CLIENT KILL` alike,
dead and late runs were no longer noticed. A new process schedules everything anew. So this program ends
the command, and then itself, when Redis answers again; systemd, Docker and Kubernetes start both anew.

The address of Redis is PREFECT_REDIS_MESSAGING_URL.
"""

import contextlib
import os
import signal
import subprocess
import sys

from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError

POLL_SECONDS = 1
STOP_SECONDS = 10


def main() -> int:
    """Return the command's exit status, or 1 if it was ended because of Redis."""
    address = os.environ["PREFECT_REDIS_MESSAGING_URL"]
    redis = Redis.from_url(address, single_connection_client=True, socket_timeout=30)
    ours = connection(redis)
    child = subprocess.Popen(sys.argv[1:])
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda number, _: child.send_signal(number))
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


def connection(redis: Redis) -> tuple[str, int] | None:
    """Return which process of Redis answers, on which connection of its own; None while none does."""
    try:
        return redis.info("server")["run_id"], redis.client_id()
    except (ConnectionError, TimeoutError):
        return None


if __name__ == "__main__":
    sys.exit(main())
