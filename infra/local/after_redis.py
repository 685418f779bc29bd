"""Restart Prefect's background services after Redis has been restarted.

They reconnect, but what they were about to run when the connection broke stays claimed and is never run
again: measured, schedules were no longer filled, and dead and late runs no longer noticed. A new process
schedules everything anew. supervisord tells this program when Redis runs (again).
"""

import os
import sys
from typing import Any

from supervisor import childutils


def main() -> None:
    """Listen to supervisord's events for ever."""
    control: Any = childutils.getRPCInterface(os.environ).supervisor
    while True:
        _, payload = childutils.listener.wait(sys.stdin, sys.stdout)
        event = dict(word.split(":", 1) for word in payload.split())
        services: dict[str, Any] = control.getProcessInfo("services")
        if event["processname"] == "redis" and services["statename"] == "RUNNING":
            control.stopProcess("services")
            control.startProcess("services", False)
        childutils.listener.ok(sys.stdout)


if __name__ == "__main__":
    main()
