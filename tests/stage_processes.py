"""The processes that run a stage for this one."""

import contextlib

import psutil

PROGRAM, SERVER = "expandr_core.runtime.runner", "expandr_core.runtime.fork_server"


def stage_processes() -> list[psutil.Process]:
    """Find the programs, and the forks: a server's child waits for a stage, which is its own child."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            above = each.parents()[:2]
            if PROGRAM in each.cmdline() or all(SERVER in one.cmdline() for one in [each, *above]):
                found.append(each)
    return found
