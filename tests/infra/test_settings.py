"""Settings that Prefect knows, and secrets that have no default."""

import re
import subprocess
from pathlib import Path

import prefect.settings
import pytest
import yaml
from outside import INFRA

PARTS = ("env", "systemd", "nginx", "docker", "kubernetes", "job-templates")
FILES = [path for part in PARTS for path in (INFRA / part).rglob("*") if path.is_file()]
SECRETS = INFRA / "kubernetes" / "secrets"  # may hold somebody's own
TEXTS = [path for path in FILES if path.parent != SECRETS or path.suffix == ".example"]
TEXTS += [INFRA / "compose.yaml", INFRA / ".env.example"]
CONFIGURATIONS = [path for path in TEXTS if path.suffix != ".json"]
OF_PREFECT_REDIS = {"PREFECT_REDIS_MESSAGING_URL", "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL"}
SECRET = r"\w*(?:PASSWORD|AUTH_STRING|ACCESS_KEY|SECRET_KEY|ACCESS_KEY_ID|REDISCLI_AUTH)"
ASSIGNED = re.compile(rf'\b{SECRET}"?[=:](?!\?)[ \t]*["\']?(\S*)')
IN_URL = re.compile(r"://[^/\s:@]*:([^@/\s]+)@")
GIVEN_BY_THE_USER = re.compile(r"^$|^\$\{\w+:\?|^\$\(\w+\)|^\{\{$|^PASSWORD$")


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_every_prefect_setting_exists(path: Path):
    names = set(re.findall(r"\bPREFECT_(?!INTEGRATIONS)[A-Z_]+\b", path.read_text()))
    unknown = {name for name in names if not hasattr(prefect.settings, name)}
    assert unknown <= OF_PREFECT_REDIS


def test_the_settings_of_redis_exist():
    redis = pytest.importorskip("prefect_redis.client").RedisMessagingSettings
    queue = pytest.importorskip("prefect_redis.cleanup_queue").RedisWorkerCleanupQueueSettings
    names = {each.model_config["env_prefix"] + "URL" for each in (redis, queue)}
    assert names == OF_PREFECT_REDIS
    assert "url" in redis.model_fields and "url" in queue.model_fields


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.name)
def test_redis_has_an_address_for_each_of_its_uses(path: Path):
    text = path.read_text()
    given = {name for name in OF_PREFECT_REDIS if re.search(rf"\b{name}(=|:|, value:)", text)}
    assert given in (set(), OF_PREFECT_REDIS)  # without one, the queue looks for a Redis of its own


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_no_secret_has_a_default(path: Path):
    text = path.read_text()
    values = ASSIGNED.findall(text) + IN_URL.findall(text)
    assert [value for value in values if not GIVEN_BY_THE_USER.match(value)] == []


def test_compose_refuses_to_start_without_each_of_its_values():
    used = re.findall(r"\$\{(\w+)(:\?)?", (INFRA / "compose.yaml").read_text())
    optional = {name for name, required in used if not required}
    assert optional == {"CPU_PIP_INDEX_URL"}
    example = re.findall(r"^(\w+)=$", (INFRA / ".env.example").read_text(), re.MULTILINE)
    assert {name for name, required in used if required} == set(example)


def test_an_api_without_a_password_does_not_start():
    unit = (INFRA / "systemd" / "prefect-api.service").read_text()
    (guard,) = re.findall(r"^ExecStartPre=/bin/sh -c '(.*)'$", unit, re.MULTILINE)
    pods = yaml.safe_load_all((INFRA / "kubernetes" / "prefect.yaml").read_text())
    (api,) = [
        each for each in pods if (each["kind"], each["metadata"]["name"]) == ("Deployment", "api")
    ]
    command = api["spec"]["template"]["spec"]["containers"][0]["command"]
    for start in (["sh", "-c", guard.replace("$$", "$")], [*command, "true"]):
        for password, status in (("", 2), ("user:password", 0)):
            environment = {"PATH": "/usr/bin:/bin", "PREFECT_SERVER_API_AUTH_STRING": password}
            assert subprocess.run(start, env=environment, check=False).returncode == status
