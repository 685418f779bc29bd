"""A local cluster's folder, ports and secrets, and the environment of its clients."""

import contextlib
import getpass
import hashlib
import json
import os
import secrets
import shutil
import sys
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, Field

PORTS = ("public", "api", "postgres", "redis", "s3", "account", "container", "object")
SETTINGS = "cluster.json"


class ClusterError(Exception):
    """An error that the user can act on; shown without a traceback."""


class Cluster(BaseModel):
    """A cluster in a folder; it writes nothing outside.

    Attributes:
        folder: holds data, logs, sockets, secrets and the workers' homes.
        port: the public port; services use the ports that follow.
        workers: number of workers per pool.
    """

    folder: Path = Field(exclude=True)
    port: int = Field(default=4200, ge=1024, le=65500)
    workers: dict[str, int] = {"cpu": 1, "gpu-infer": 1, "gpu-train": 1}

    def save(self) -> None:
        """Write the settings, so that other commands need only the folder.

        Other users cannot enter the folder; if we are root, PostgreSQL's user can, but cannot list it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        (self.folder / SETTINGS).write_text(self.model_dump_json(indent=1))

    @classmethod
    def load(cls, folder: Path) -> "Cluster":
        """Read the settings that `up` saved.

        Raises:
            ClusterError: if there is no cluster in the folder.
        """
        with contextlib.suppress(FileNotFoundError):
            return cls(folder=folder, **json.loads((folder / SETTINGS).read_text()))
        raise ClusterError(f"{folder}: there is no cluster; start one with `up`")

    @property
    def ports(self) -> dict[str, int]:
        """The port of every service.

        >>> Cluster(folder=Path("."), port=4200).ports["postgres"]
        4202
        """
        return {name: self.port + offset for offset, name in enumerate(PORTS)}

    @property
    def url(self) -> str:
        """Address of the UI; the API is at /api below it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def socket(self) -> Path:
        """The socket on which supervisord listens."""
        return self.folder / "run" / "supervisor.sock"

    @cached_property
    def secrets(self) -> dict[str, str]:
        """Passwords and keys, generated at first use and readable only by their owner."""
        path = self.folder / "secrets.env"
        if not path.exists():
            names = ("DATABASE", "REDIS", "API", "S3", "S3_HASH")
            lines = [f"EXPANDR_{name}_SECRET={secrets.token_hex(24)}\n" for name in names]
            partial = path.with_suffix(".partial")
            partial.touch(mode=0o600)
            partial.write_text("".join(lines))
            partial.rename(path)
        return dict(line.split("=", 1) for line in path.read_text().split())

    @property
    def disk(self) -> str:
        """Name of Swift's disk, a secret: its servers answer anyone on this machine who knows it."""
        secret = self.secrets["EXPANDR_S3_HASH_SECRET"].encode()
        return f"disk-{hashlib.sha256(secret).hexdigest()}"

    def client_environment(self, *, home: Path | None = None) -> dict[str, str]:
        """Return the environment in which `prefect`, `expandr` and the workers reach this cluster."""
        return {
            **CLIENT,
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_API_AUTH_STRING": f"expandr:{self.secrets['EXPANDR_API_SECRET']}",
            "PREFECT_HOME": str((home or self.folder / "client") / "prefect"),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3']}",
            "AWS_ACCESS_KEY_ID": "expandr:owner",
            "AWS_SECRET_ACCESS_KEY": self.secrets["EXPANDR_S3_SECRET"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "EXPANDR_STORE": "s3://expandr/store",
        }


# The client retries after 2, 4, 8, ... seconds if nginx answers 502 or 504 (no API), or the API itself
# 500 or 503 (no database, no Redis). 8 retries take more than 8 minutes.
CLIENT = {
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "DO_NOT_TRACK": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}


def find_program(name: str) -> str:
    """Find a program in the system or in this Python's environment.

    Raises:
        ClusterError: if it is not installed; names the package to install.
    """
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
    )
    places = [Path(sys.executable).parent, *reversed(debian), Path("/usr/sbin"), Path("/sbin")]
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", "")])
    found = shutil.which(name, path=path)
    if found:
        return found
    raise ClusterError(
        f"{name} is not installed; Debian and Ubuntu: apt install postgresql redis-server nginx-light, "
        "and pip install 'expandr-on-prefect[cluster]'"
    )


def service_user() -> str:
    """Return the user for programs that refuse to run as root: `postgres` if we are root, else us."""
    return "postgres" if os.geteuid() == 0 else getpass.getuser()
