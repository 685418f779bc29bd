"""One local cluster for all tests of this folder."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from infra.local import lifecycle
from infra.local.cluster import PORTS, Cluster, ClusterError, find_program

PROGRAMS = ("postgres", "initdb", "redis-server", "nginx")


def first_of_free_ports(count: int) -> int:
    """Return the first of so many ports in a row that nobody listens on."""
    for first in range(24200, 60000, 100):
        with_listener = False
        for port in range(first, first + count):
            with socket.socket() as probe:
                with_listener |= probe.connect_ex(("127.0.0.1", port)) == 0
        if not with_listener:
            return first
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def installed() -> None:
    """Skip where a service is not installed."""
    try:
        for program in PROGRAMS:
            find_program(program)
    except ClusterError as error:
        pytest.skip(str(error))
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("chromium is not installed")


@pytest.fixture(scope="module")
def cluster(installed) -> Iterator[Cluster]:
    """A running cluster; PostgreSQL's user could not enter the folders that pytest makes."""
    with TemporaryDirectory(prefix="expandr-cluster-") as folder:
        Path(folder).chmod(0o711)
        cluster = Cluster(folder=Path(folder), port=first_of_free_ports(len(PORTS)))
        try:
            lifecycle.up(cluster, print)
            yield cluster
        finally:
            lifecycle.down(cluster, print, now=True, patience=0)


@pytest.fixture(scope="module")
def deployed(cluster) -> Cluster:
    """The cluster, with everything that `expandr deploy` creates."""
    command = [find_program("expandr"), "deploy"]
    subprocess.run(command, env=os.environ | cluster.client_environment(), check=True)
    return cluster
