"""A whole cluster on this machine: access, conditional writes, restarts, the demo, and secrets."""

import base64
import contextlib
import glob
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import boto3
import httpx
import prefect.settings
import psutil
import pytest
from botocore.exceptions import ClientError
from shaky_proxy import ShakyProxy
from waiting import wait_until

from infra.local import lifecycle, programs
from infra.local.cluster import Cluster, find_program

ROOT = Path(__file__).parents[2]
WITH_SECRETS = ("secrets.env", "swift/proxy-server.conf", "swift/swift.conf")


@pytest.fixture
def s3(cluster):
    settings = cluster.client_environment()
    return boto3.client(
        "s3",
        endpoint_url=settings["AWS_ENDPOINT_URL"],
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        region_name=settings["AWS_DEFAULT_REGION"],
    )


def was_written(s3, **arguments) -> bool:
    try:
        s3.put_object(Bucket="expandr", **arguments)
    except ClientError as error:
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 412
        return False
    return True


def test_prefect_knows_every_setting(tmp_path):
    cluster = Cluster(folder=tmp_path)
    names = {*programs.server_environment(cluster, "api"), *cluster.client_environment()}
    for name in names:
        if name.startswith("PREFECT_") and not name.startswith("PREFECT_REDIS_"):
            assert getattr(prefect.settings, name).name == name


def test_swift_stays_out_of_the_process_that_starts_it(cluster):
    assert not {"swift", "eventlet"} & set(sys.modules)


def test_the_api_refuses_whoever_does_not_know_the_password(cluster):
    assert httpx.get(f"{cluster.url}/api/flows/count").status_code == 401
    wrong = httpx.get(f"{cluster.url}/api/flows/count", auth=("expandr", "wrong"))
    assert wrong.status_code == 401


def test_of_writers_at_the_same_moment_one_creates_an_object(s3):
    with ThreadPoolExecutor(8) as writers:
        written = writers.map(
            lambda number: was_written(s3, Key="race", Body=str(number), IfNoneMatch="*"), range(8)
        )
        assert sum(written) == 1


def test_a_write_can_be_bound_to_what_it_replaces(s3):
    etag = s3.put_object(Bucket="expandr", Key="bound", Body=b"first")["ETag"]
    assert was_written(s3, Key="bound", Body=b"second", IfMatch=etag)
    assert not was_written(s3, Key="bound", Body=b"third", IfMatch=etag)
    assert s3.get_object(Bucket="expandr", Key="bound")["Body"].read() == b"second"


def test_an_upload_that_is_damaged_on_the_way_is_refused(cluster, tmp_path, monkeypatch):
    """Here and not beside the other tests of the store: their S3 server takes what it is sent."""
    from expandr_core.store.s3 import S3
    from expandr_core.store.store import Store

    settings = cluster.client_environment()
    proxy = ShakyProxy(settings["AWS_ENDPOINT_URL"])
    for name in settings:
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, settings[name])
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    S3.clear_instance_cache()
    store = Store("s3://expandr/uploads", tmp_path / "scratch")
    for number, size in enumerate((100, 40 << 20)):  # at once, and in parts
        key, folder = f"expand-{number:020}", tmp_path / "out"
        folder.mkdir()
        (folder / "file").write_bytes(b"x" * size)
        with proxy.failing("damaged"), pytest.raises(OSError):
            store.commit(key, folder, [], {"counts": {}})
        assert proxy.faults and store.lookup(key) is None
        made = store.commit(key, folder, [], {"counts": {}})
        assert store.lookup(key) == made
        shutil.rmtree(folder)
    proxy.close()
    S3.clear_instance_cache()


def test_other_users_reach_neither_the_folder_nor_swift_s_own_servers(cluster, s3):
    s3.put_object(Bucket="expandr", Key="private", Body=b"")
    modes = {
        path: path.stat().st_mode & 0o077 for path in cluster.folder.iterdir() if path.is_dir()
    }
    assert set(modes.values()) == {0}
    assert cluster.folder.stat().st_mode & 0o066 == 0
    for kind, path in {"account": "a", "container": "a/c", "object": "a/c/o"}.items():
        address = f"http://127.0.0.1:{cluster.ports[kind]}"
        assert httpx.get(f"{address}/disk/0/{path}").status_code == 507
        assert httpx.get(f"{address}/{cluster.disk}/0/{path}").status_code == 404


def test_killed_services_come_back(cluster, s3):
    control = lifecycle.supervisor(cluster)
    children = []

    def pid(name: str, other_than: int = 0) -> int:
        process = control.getProcessInfo(name)
        running = process["statename"] == "RUNNING" and process["pid"] != other_than
        return process["pid"] if running else 0

    # dependents first: they would end with what they need
    for name in ("nginx", "services", "api", "s3", "s3-object", "redis", "postgres"):
        before = pid(name)
        assert before
        children += psutil.Process(before).children(recursive=True)
        os.kill(before, signal.SIGKILL)
        wait_until(partial(pid, name, other_than=before))
        lifecycle._wait(cluster, "api", lambda: bool(lifecycle.api(cluster, "GET", "/ready")))
        lifecycle._wait(cluster, "s3", lambda: lifecycle._make_bucket(cluster))
        assert was_written(s3, Key=f"after-{name}", Body=b"")
    lifecycle.up(cluster, print)
    wait_until(lambda: not any(child.is_running() for child in children))


def test_services_start_anew_after_redis(cluster):
    control = lifecycle.supervisor(cluster)
    before = control.getProcessInfo("services")["pid"]
    os.kill(control.getProcessInfo("redis")["pid"], signal.SIGKILL)
    wait_until(lambda: control.getProcessInfo("services")["pid"] not in (0, before))


def test_the_loop_started_in_the_browser_equals_the_local_one(cluster, first):
    command = [sys.executable, "-m", "infra.local.demo", "--preset", "tiny", "--keep"]
    command += ["--folder", str(cluster.folder), "--port", str(cluster.port)]
    command += ["--seed", "1", "--store", first.record.store, "--minutes", "40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "all equal" in done.stdout
    assert "running the same loop" not in done.stdout  # the first run was compared with
    pictures = {path.name for path in (cluster.folder / "screenshots").iterdir()}
    assert pictures == {"form.png", "run.png", "report.png"}


def processes_of(runs: set[str]) -> list[psutil.Process]:
    """Find the processes that work for flow runs."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("PREFECT__FLOW_RUN_ID") in runs:
                found.append(process)
    return found


def test_cancelling_the_loop_ends_every_process(deployed, s3):
    cluster = deployed
    store = "s3://expandr/cancelled"
    deployment = lifecycle.api(cluster, "GET", "/deployments/name/joint-loop/manual")
    options = {"llm": {"tiny": {"steps": 100_000, "checkpoint_steps": 5}}}
    parameters = {**deployment["parameters"], "preset": "tiny", "options": options, "store": store}
    parameters["placement"] |= {"runs_at_once": 2}  # one of ours; else the loop runs all itself
    path = f"/deployments/{deployment['id']}/create_flow_run"
    run = lifecycle.api(cluster, "POST", path, {"parameters": parameters})["id"]
    query = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}
    checkpoints = f"{cluster.folder}/workers/*/scratch/**/tiny_llm-*/checkpoints/*"
    wait_until(lambda: glob.glob(checkpoints, recursive=True))  # it is training; folders may vanish
    stages = lifecycle.api(cluster, "POST", "/flow_runs/filter", query)
    assert any(stage["state_type"] == "RUNNING" for stage in stages)
    runs = {run, *(stage["id"] for stage in stages)}
    assert len(processes_of(runs)) >= 2

    state = {"state": {"type": "CANCELLING"}}
    lifecycle.api(cluster, "POST", f"/flow_runs/{run}/set_state", state)
    wait_until(lambda: not processes_of(runs))

    def state_of(run: str) -> str:
        return lifecycle.api(cluster, "GET", f"/flow_runs/{run}")["state_type"]

    wait_until(lambda: {state_of(each) for each in runs} == {"CANCELLED"})
    listed = s3.list_objects_v2(Bucket="expandr", Prefix="cancelled/artifacts/tiny_llm-")
    assert not listed.get("Contents")


def test_no_secret_is_in_a_log_the_data_or_an_argument(cluster):
    user = cluster.client_environment()["PREFECT_API_AUTH_STRING"].encode()
    secrets = [secret.encode() for secret in cluster.secrets.values()]
    secrets.append(base64.b64encode(user))
    allowed = {cluster.folder / name for name in WITH_SECRETS}
    for path in allowed:
        assert path.stat().st_mode & 0o077 == 0
    paths = (Path(folder, name) for folder, _, names in os.walk(cluster.folder) for name in names)
    for path in paths:
        if path.is_file() and path not in allowed:
            with contextlib.suppress(FileNotFoundError):  # a service has removed it
                content = path.read_bytes()
                assert not any(secret in content for secret in secrets), path
    database = cluster.secrets["EXPANDR_DATABASE_SECRET"]
    command = [find_program("pg_dump"), "-h", "127.0.0.1", "-U", "prefect", "postgres", "-p"]
    dump = subprocess.run(
        [*command, str(cluster.ports["postgres"])],
        env=os.environ | {"PGPASSWORD": database},
        capture_output=True,
        check=True,
    ).stdout
    assert b"COPY public.flow_run" in dump
    assert not any(secret in dump for secret in secrets)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes()
        except OSError:  # it has ended
            continue
        assert not any(secret in arguments for secret in secrets), arguments
