"""The programs of the cluster: their commands, environments and configuration files."""

import configparser
import getpass
import hashlib
import os
import shlex
import shutil
import string
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local.cluster import Cluster, find_program, service_user

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
SWIFT = {
    "account": "swift.account.server",
    "container": "swift.container.server",
    "object": "swift.obj.server",
}

# Several server processes share PostgreSQL and Redis. Reading events in batches is six times as fast.
SERVER = {
    "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
    "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
    "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
    "PREFECT_SERVER_WORKER_CHANNEL_CLEANUP_QUEUE_STORAGE": "prefect_redis.cleanup_queue",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TRIGGERS_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "DO_NOT_TRACK": "1",
}


@dataclass(frozen=True)
class Program:
    """A process that supervisord keeps running.

    Attributes:
        command: the words of its command line.
        environment: added to ours; `%(ENV_X)s` stands for the secret X.
        user: the user that runs it, if not us.
        stop_signal: the signal that asks it to stop.
        stop_seconds: how long it may take to stop before it is killed.
    """

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    stop_signal: str = "TERM"
    stop_seconds: int = 10


def server_environment(cluster: Cluster, name: str) -> dict[str, str]:
    """Return the environment of a Prefect server process, with references to the secrets."""
    database = f"prefect:%(ENV_EXPANDR_DATABASE_SECRET)s@127.0.0.1:{cluster.ports['postgres']}"
    redis = f"redis://:%(ENV_EXPANDR_REDIS_SECRET)s@127.0.0.1:{cluster.ports['redis']}"
    return {
        **SERVER,
        "PREFECT_HOME": f"{cluster.folder}/{name}",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": f"{cluster.folder}/{name}/ui",
        "PREFECT_SERVER_UI_API_URL": f"{cluster.url}/api",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": cluster.url,
        "PREFECT_SERVER_API_AUTH_STRING": "expandr:%(ENV_EXPANDR_API_SECRET)s",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}/postgres",
        "PREFECT_REDIS_MESSAGING_URL": f"{redis}/0",
        "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL": f"{redis}/0",
        "PREFECT_SERVER_DOCKET_URL": f"{redis}/1",
    }


def services(cluster: Cluster) -> dict[str, Program]:
    """Return the programs that must run before the workers, in starting order."""
    folder, ports = cluster.folder, cluster.ports
    user = service_user() if os.geteuid() == 0 else ""
    postgres = [
        *(find_program("postgres"), "-D", f"{folder}/postgres", "-p", str(ports["postgres"])),
        *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
    ]
    api = ["prefect", "server", "start", "--no-services", "--host", "127.0.0.1", "--port"]
    return {
        "postgres": Program(postgres, user=user, stop_signal="INT"),
        "redis": Program([find_program("redis-server"), f"{folder}/redis.conf"]),
        **{f"s3-{kind}": _swift(cluster, SWIFT[kind], kind) for kind in SWIFT},
        "s3-updater": _swift(cluster, "swift.obj.updater", "object"),
        "s3": _swift(cluster, "swift.proxy.server", "proxy"),
        "api": Program(_python(*api, str(ports["api"])), server_environment(cluster, "api")),
        "services": Program(
            [
                *(sys.executable, f"{REPOSITORY}/infra/with_redis.py"),
                *(find_program("setpriv"), "--pdeathsig", "TERM"),  # none may outlive with_redis.py
                *_python("prefect", "server", "services", "start"),
            ],
            server_environment(cluster, "services"),
        ),
        "nginx": Program(
            [
                find_program("nginx"),
                "-p",
                str(folder),
                "-e",
                "stderr",
                "-c",
                f"{folder}/nginx.conf",
            ],
            stop_signal="QUIT",
        ),
    }


def workers(cluster: Cluster) -> dict[str, Program]:
    """Return the workers: several runs at once on the CPU pool, one run per GPU worker.

    supervisord starts them with default signal handling. A worker that a shell started in the background
    would ignore SIGINT and its first SIGTERM, and go on taking runs.
    """
    found = {}
    devices = gpus()
    for pool, count in cluster.workers.items():
        for number in range(1, count + 1):
            name = f"{pool.removeprefix('gpu-')}-{number}"
            home = cluster.folder / "workers" / name
            environment = cluster.client_environment(home=home) | {
                "PREFECT_API_AUTH_STRING": "expandr:%(ENV_EXPANDR_API_SECRET)s",
                "AWS_SECRET_ACCESS_KEY": "%(ENV_EXPANDR_S3_SECRET)s",
                "HOME": str(home),
                "EXPANDR_SCRATCH": str(home / "scratch"),
                "EXPANDR_WORKER": name,
            }
            command = ["prefect", "worker", "start", "--type", "process", "--pool", pool]
            command += ["--name", name]
            if pool.startswith("gpu-"):
                command += ["--limit", "1"]
                if devices:
                    environment["CUDA_VISIBLE_DEVICES"] = devices[len(found) % len(devices)]
            found[name] = Program(_python(*command), environment)
    return found


def gpus() -> list[str]:
    """Return the indices of this machine's GPUs."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()


def _python(*words: str) -> list[str]:
    return [sys.executable, "-m", *words]


def _swift(cluster: Cluster, module: str, kind: str) -> Program:
    """Return one of Swift's servers; without the extra call it would look for swift.conf in /etc."""
    folder = f"{cluster.folder}/swift"
    start = f"import swift.common.utils, {module}; swift.common.utils.set_swift_dir({folder!r}); "
    command = [sys.executable, "-c", f"{start}{module}.main()", f"{folder}/{kind}-server.conf"]
    return Program([*command, "--verbose"], {"PYTHONPATH": str(REPOSITORY)})


def write_configuration(cluster: Cluster) -> None:
    """Write every configuration file; only the owner can read files and enter folders."""
    folder = cluster.folder
    homes = [
        "api",
        "services",
        "migration",
        "client",
        *(f"workers/{name}" for name in workers(cluster)),
    ]
    for name in ("logs", "run", "redis", "swift", "s3", "workers", *homes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name).chmod(0o700)
    disk = folder / "s3" / cluster.disk
    if (folder / "s3" / "disk").exists():  # its name before names were secret
        (folder / "s3" / "disk").rename(disk)
    disk.mkdir(exist_ok=True)
    values = {
        **{name: str(port) for name, port in cluster.ports.items()},
        "folder": str(folder),
        "user": getpass.getuser(),
        "redis_hash": hashlib.sha256(cluster.secrets["EXPANDR_REDIS_SECRET"].encode()).hexdigest(),
        "s3_secret": cluster.secrets["EXPANDR_S3_SECRET"],
        "hash_suffix": cluster.secrets["EXPANDR_S3_HASH_SECRET"],
    }
    _fill("nginx.conf", folder / "nginx.conf", values)
    _fill("redis.conf", folder / "redis.conf", values)
    _fill("swift.conf", folder / "swift" / "swift.conf", values)
    _fill("swift-proxy.conf", folder / "swift" / "proxy-server.conf", values)
    for kind in SWIFT:
        special = {"kind": kind, "bind": str(cluster.ports[kind])}
        _fill("swift-server.conf", folder / "swift" / f"{kind}-server.conf", values | special)
    ports = [word for kind in SWIFT for word in (kind, str(cluster.ports[kind]))]
    rings = _python("infra.local.rings", f"{folder}/swift", *ports)
    subprocess.run(rings, cwd=REPOSITORY, check=True, input=cluster.disk, text=True, umask=0o077)
    _write_supervisor(cluster)


class _Template(string.Template):
    delimiter = "@"


def _fill(template: str, target: Path, values: dict[str, str]) -> None:
    target.touch(mode=0o600)
    text = (HERE / f"{template}.template").read_text()
    target.write_text(_Template(text).substitute(values))


def _write_supervisor(cluster: Cluster) -> None:
    config = configparser.RawConfigParser()
    config.optionxform = str  # pyrefly: ignore[bad-assignment]
    config["unix_http_server"] = {"file": str(cluster.socket), "chmod": "0700"}
    config["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    config["supervisorctl"] = {"serverurl": f"unix://{cluster.socket}"}
    config["supervisord"] = {
        "logfile": f"{cluster.folder}/logs/supervisord.log",
        "pidfile": f"{cluster.folder}/run/supervisord.pid",
        "directory": str(cluster.folder),
        "umask": "077",
    }
    forget = [word for name in cluster.secrets for word in ("--unset", name)]
    for name, program in (services(cluster) | workers(cluster)).items():
        environment = ",".join(f'{key}="{value}"' for key, value in program.environment.items())
        section: dict[str, Any] = {
            "command": shlex.join(["/usr/bin/env", *forget, *program.command]),
            "environment": environment,
            "stopsignal": program.stop_signal,
            "stopwaitsecs": program.stop_seconds,
            "stdout_logfile": f"{cluster.folder}/logs/{name}.log",
            "stdout_logfile_maxbytes": "20MB",
            "stdout_logfile_backups": 2,
            "redirect_stderr": "true",
            "autostart": "false",
            "autorestart": "true",
            "startretries": 1000,
            "killasgroup": "true",
        }
        if program.user:
            section["user"] = program.user
        config[f"program:{name}"] = section
    path = cluster.folder / "supervisord.conf"
    path.touch(mode=0o600)
    with path.open("w") as file:
        config.write(file)
