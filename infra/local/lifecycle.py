"""Start a cluster, stop it without losing work, and show its status."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from supervisor.xmlrpc import Faults, SupervisorTransport

from infra.local import programs
from infra.local.cluster import Cluster, ClusterError, find_program, service_user

Say = Callable[[str], None]
PAUSED = "paused-pools.json"
SECONDS_TO_START = 300


def supervisor(cluster: Cluster) -> Any:
    """Connect to the cluster's supervisord; calls raise OSError if it does not run."""
    transport = SupervisorTransport(None, None, f"unix://{cluster.socket}")
    return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor


def is_running(cluster: Cluster) -> bool:
    """Tell whether the cluster's supervisord answers."""
    try:
        return bool(supervisor(cluster).getState())
    except OSError:
        return False


def up(cluster: Cluster, say: Say) -> None:
    """Start whatever is not running yet, and wait until the cluster is ready.

    Raises:
        ClusterError: if a program does not start; shows the end of its log.
    """
    if len(str(cluster.socket)) > 100:
        raise ClusterError(
            f"{cluster.folder}: the path is too long for a socket; take a shorter one"
        )
    cluster.save()
    programs.write_configuration(cluster)
    _initialise_database(cluster, say)
    if not is_running(cluster):
        command = [sys.executable, "-m", "supervisor.supervisord"]
        command += ["-c", f"{cluster.folder}/supervisord.conf"]
        environment = os.environ | cluster.secrets
        subprocess.run(command, env=environment, check=True, stdin=subprocess.DEVNULL)
        _wait(cluster, "supervisord", lambda: is_running(cluster))
    else:
        _reload(cluster)
    _start(cluster, ["postgres", "redis", *(f"s3-{kind}" for kind in programs.SWIFT)], say)
    _start(cluster, ["s3-updater", "s3"], say)
    _wait(cluster, "postgres", lambda: _accepts_connections(cluster))
    _migrate(cluster, say)
    _start(cluster, ["api", "services", "nginx"], say)
    _wait(cluster, "s3", lambda: _make_bucket(cluster))
    _wait(cluster, "api", lambda: bool(api(cluster, "GET", "/ready")))
    _start(cluster, list(programs.workers(cluster)), say)
    _wait(cluster, next(iter(programs.workers(cluster)), "api"), lambda: _workers_online(cluster))
    _resume_pools(cluster)
    say(f"{cluster.url} is up")


def _initialise_database(cluster: Cluster, say: Say) -> None:
    data = cluster.folder / "postgres"
    if data.exists():
        return
    say("creating the database")
    partial, password = data.with_suffix(".partial"), cluster.folder / "password.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    password.touch(mode=0o600)
    password.write_text(cluster.secrets["EXPANDR_DATABASE_SECRET"])
    for path in (partial, password):
        shutil.chown(path, service_user())
    command = [find_program("initdb"), "-D", str(partial), "-U", "prefect", "--auth=scram-sha-256"]
    command += ["--encoding=UTF8", "--no-locale", f"--pwfile={password}"]
    user = service_user() if os.geteuid() == 0 else None
    made = subprocess.run(
        command,
        user=user,
        group=user,
        extra_groups=[] if user else None,
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    password.unlink()
    if made.returncode:
        raise ClusterError(
            f"initdb failed in {partial}: {made.stderr.strip()} (can the user {service_user()} "
            f"enter {cluster.folder}?)"
        )
    partial.rename(data)


def _reload(cluster: Cluster) -> None:
    """Tell a running supervisord which programs were added, changed or removed."""
    control = supervisor(cluster)
    added, changed, removed = control.reloadConfig()[0]
    for name in [*removed, *changed]:
        control.stopProcessGroup(name)
        control.removeProcessGroup(name)
    for name in [*added, *changed]:
        control.addProcessGroup(name)


def _start(cluster: Cluster, names: list[str], say: Say) -> None:
    """Start programs that are not running; `_wait` checks that they work."""
    say(f"starting {', '.join(names)}")
    control = supervisor(cluster)
    for name in names:
        try:
            control.startProcess(name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != Faults.ALREADY_STARTED:
                raise ClusterError(f"{name} does not start: {fault.faultString}") from fault


def _wait(cluster: Cluster, program: str, is_ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    trouble = ""
    while time.monotonic() < deadline:
        try:
            if is_ready():
                return
        except (OSError, httpx.HTTPError) as error:
            trouble = f" ({error})"
        time.sleep(0.3)
    log = cluster.folder / "logs" / f"{program}.log"
    with contextlib.suppress(FileNotFoundError):
        trouble += f"; the end of {log}:\n" + "\n".join(log.read_text().splitlines()[-20:])
    raise ClusterError(f"{program} is not ready after {SECONDS_TO_START} seconds{trouble}")


def _accepts_connections(cluster: Cluster) -> bool:
    command = [find_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p"]
    port = str(cluster.ports["postgres"])
    return subprocess.run([*command, port], check=False).returncode == 0


def _migrate(cluster: Cluster, say: Say) -> None:
    say("migrating the database")
    values = {f"ENV_{name}": value for name, value in cluster.secrets.items()}
    settings = programs.server_environment(cluster, "migration")
    environment = os.environ | {name: value % values for name, value in settings.items()}
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    log = cluster.folder / "logs" / "migration.log"
    with log.open("w") as output:
        done = subprocess.run(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise ClusterError(f"the migration failed: {log.read_text()[-3000:]}")


def _make_bucket(cluster: Cluster) -> bool:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    settings = cluster.client_environment()
    client = boto3.client(
        "s3",
        endpoint_url=settings["AWS_ENDPOINT_URL"],
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        region_name=settings["AWS_DEFAULT_REGION"],
        config=Config(retries={"total_max_attempts": 1}),
    )
    try:
        client.create_bucket(Bucket="expandr")
    except ClientError as error:
        if error.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
            raise OSError(str(error)) from error
    except BotoCoreError as error:
        raise OSError(str(error)) from error
    return True


def api(cluster: Cluster, method: str, path: str, content: Any = None) -> Any:
    """Call Prefect's API through nginx.

    Raises:
        httpx.HTTPError: if it does not answer, or answers with an error.
    """
    user, _, password = cluster.client_environment()["PREFECT_API_AUTH_STRING"].partition(":")
    answer = httpx.request(
        method,
        f"{cluster.url}/api{path}",
        json=content,
        auth=(user, password),
        timeout=30,
        verify=False,  # plain HTTP: no certificates to load
    )
    answer.raise_for_status()
    return answer.json() if answer.content else None


def _workers_online(cluster: Cluster) -> bool:
    for pool, count in cluster.workers.items():
        found = api(cluster, "POST", f"/work_pools/{pool}/workers/filter", {}) if count else []
        if sum(worker["status"] == "ONLINE" for worker in found) < count:
            return False
    return True


def _resume_pools(cluster: Cluster) -> None:
    """Resume the pools that `down` paused; those that somebody else paused stay paused."""
    note = cluster.folder / PAUSED
    with contextlib.suppress(FileNotFoundError):
        for pool in json.loads(note.read_text()):
            api(cluster, "PATCH", f"/work_pools/{pool}", {"is_paused": False})
        note.unlink()


def down(cluster: Cluster, say: Say, *, now: bool, patience: float) -> None:
    """Take no new runs, wait for the active ones, then stop; interrupted ones continue after `up`.

    Args:
        cluster: the cluster.
        say: shows progress.
        now: whether to stop without waiting.
        patience: how many seconds to wait at most.
    """
    if not is_running(cluster):
        say("not running")
        return
    unfinished: list[dict[str, Any]] = []
    try:
        _pause_pools(cluster)
        if not now:
            _drain(cluster, say, patience)
        unfinished = _unfinished(cluster)
    except httpx.HTTPError as error:
        say(f"the API does not answer ({error}); stopping without waiting")
    control = supervisor(cluster)
    say("stopping the workers")
    for name in programs.workers(cluster):
        with contextlib.suppress(xmlrpc.client.Fault):
            control.stopProcess(name)
    with contextlib.suppress(httpx.HTTPError):
        for run in unfinished:
            state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
            state["message"] = "The cluster was stopped; the run continues when it is up again."
            path = f"/flow_runs/{run['id']}/set_state"
            api(cluster, "POST", path, {"state": state, "force": True})
            say(f"{run['name']} goes on after the next `up`")
    pid = control.getPID()
    control.shutdown()
    _wait_for_end(pid)
    say("stopped")


def _wait_for_end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, 0)
            time.sleep(0.2)


def _pause_pools(cluster: Cluster) -> None:
    pools = api(cluster, "POST", "/work_pools/filter", {})
    names = [pool["name"] for pool in pools if not pool["is_paused"]]
    note = cluster.folder / PAUSED
    before = json.loads(note.read_text()) if note.exists() else []
    note.write_text(json.dumps(sorted({*before, *names})))
    for name in names:
        api(cluster, "PATCH", f"/work_pools/{name}", {"is_paused": True})


def _unfinished(cluster: Cluster) -> list[dict[str, Any]]:
    """Return the runs that workers have begun and not ended."""
    states = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
    runs = api(cluster, "POST", "/flow_runs/filter", {"flow_runs": {"state": states}})
    return [run for run in runs if run["work_pool_name"]]


def _drain(cluster: Cluster, say: Say, patience: float) -> None:
    """Wait until nothing is running any more.

    A run that waits for another one, which no pool takes now, would wait for ever; it does not count.
    """
    deadline = time.monotonic() + patience
    shown: set[str] = set()
    while working := set(_working(cluster)):
        if time.monotonic() > deadline:
            say(f"still working after {patience:.0f} seconds: {', '.join(sorted(working))}")
            return
        if working != shown:
            say(f"waiting for {', '.join(sorted(working))}")
            shown = working
        time.sleep(2)


def _working(cluster: Cluster) -> Iterator[str]:
    for run in _unfinished(cluster):
        children = {
            "state": {"type": {"any_": ["SCHEDULED", "PAUSED"]}},
            "parent_flow_run_id": {"any_": [run["id"]]},
        }
        if not api(cluster, "POST", "/flow_runs/count", {"flow_runs": children}):
            yield run["name"]


def status(cluster: Cluster) -> list[tuple[str, str, str]]:
    """Return every program's name, state, and process id with its age.

    Raises:
        ClusterError: if the cluster does not run.
    """
    if not is_running(cluster):
        raise ClusterError(f"{cluster.folder}: not running; start it with `up`")
    return [
        (process["name"], process["statename"].lower(), process["description"])
        for process in supervisor(cluster).getAllProcessInfo()
    ]
