"""Each file is what its reader expects, as far as schemas and linters can tell."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import redis
import yaml
from outside import INFRA, program, run
from ports import kept_port
from setuptools import find_namespace_packages
from waiting import SECONDS, wait_until

COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
KUBERNETES = INFRA / "kubernetes"
KUBERNETES_VERSION = "1.32"


def test_compose_follows_the_compose_specification():
    pytest.importorskip("check_jsonschema")  # it carries the schema
    schemas = files("check_jsonschema.builtin_schemas")
    schema = json.loads((schemas / "vendor" / "compose-spec.json").read_text())
    jsonschema.validate(COMPOSE, schema)


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_of_compose_waits_only_for_what_can_come(name):
    service = COMPOSE["services"][name]
    assert service["image"].partition(":")[2] not in ("", "latest")
    for needed, how in service.get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in COMPOSE["services"][needed]
    for volume in service.get("volumes", []):
        source = volume.partition(":")[0]
        assert source in COMPOSE["volumes"] or source.startswith("$") or (INFRA / source).exists()


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_no_process_of_compose_gets_more_rights_than_it_is_given(name):
    service = COMPOSE["services"][name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["cap_drop"] == ["ALL"]
    assert ("user" in service) == (name in ("postgres", "redis"))  # our own images have one


def test_the_dockerfile_passes_hadolint():
    run("hadolint", INFRA / "docker" / "Dockerfile")


def test_what_an_image_installs_and_starts_is_let_into_its_build():
    project = tomllib.loads((INFRA.parent / "pyproject.toml").read_text())
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = find_namespace_packages(str(INFRA.parent), include=include)
    assert {"expandr_core.store", "expandr_cli", "infra.local"} <= set(packages)
    needed = [name.replace(".", "/") for name in packages]
    needed += [word for word in COMPOSE["services"]["services"]["command"] if "/" in word]
    ignored = (INFRA.parent / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignored if line.startswith("!") and line != "!infra"]
    for path in needed:
        assert any(fnmatch(f"{path}/", f"{each}/*") for each in let_in), path


def objects(text: str) -> list[dict]:
    return [each for each in yaml.safe_load_all(text) if each["kind"] not in ("Component", "any")]


def kubernetes_files() -> list[Path]:
    return [path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml"]


@pytest.mark.parametrize("path", kubernetes_files(), ids=lambda path: path.name)
def test_objects_follow_the_schemas_of_kubernetes(path):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for each in objects(path.read_text()):
        kubernetes_validate.validate(each, KUBERNETES_VERSION, strict=True)


@pytest.fixture
def rendered(tmp_path) -> list[dict]:
    """What `kubectl apply -k` would send, with made-up secrets."""
    infra = shutil.copytree(INFRA, tmp_path / "infra")
    for example in (infra / "kubernetes" / "secrets").glob("*.env.example"):
        example.with_suffix("").write_text(example.read_text().replace("=\n", "=made-up\n"))
    for name in ("tls.crt", "tls.key"):
        (infra / "kubernetes" / "secrets" / name).write_text("made-up")
    return list(yaml.safe_load_all(run("kubectl", "kustomize", infra / "kubernetes")))


def test_the_kustomized_cluster_is_valid_and_complete(rendered):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    names = {(each["kind"], each["metadata"]["name"]) for each in rendered}
    assert len(names) == len(rendered)
    for each in rendered:
        kubernetes_validate.validate(each, KUBERNETES_VERSION, strict=True)
        pod = each.get("spec", {}).get("template", {}).get("spec", {"containers": []})
        for container in pod["containers"]:
            for source in container.get("envFrom", []):
                ((kind, reference),) = source.items()
                wanted = "ConfigMap" if kind == "configMapRef" else "Secret"
                assert (wanted, reference["name"]) in names
            for variable in container.get("env", []):
                secret = variable.get("valueFrom", {}).get("secretKeyRef")
                assert secret is None or ("Secret", secret["name"]) in names
            if container["image"].startswith("registry.invalid/"):
                assert pod["securityContext"]["runAsNonRoot"]


def test_every_pod_fits_the_restricted_standard_that_the_namespace_enforces(rendered):
    (namespace,) = [each for each in rendered if each["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"] == {"pod-security.kubernetes.io/enforce": "restricted"}
    others = objects((KUBERNETES / "job-workers.yaml").read_text())
    template = json.loads((INFRA / "job-templates" / "kubernetes.json").read_text())
    others.append(template["job_configuration"]["job_manifest"])
    others += objects((KUBERNETES / "serve.yaml").read_text())
    pods = [each.get("spec", {}).get("template") for each in (*rendered, *others)]
    pods = [pod["spec"] for pod in pods if pod]
    assert len(pods) == 12
    for pod in pods:
        outer = pod["securityContext"]
        assert outer["runAsNonRoot"] and outer["runAsUser"] > 0
        assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            inner = container["securityContext"]
            assert inner["allowPrivilegeEscalation"] is False
            assert inner["capabilities"] == {"drop": ["ALL"]}


def words_of(value: Any) -> Iterator[str]:
    """Yield every string in commands, arguments and checks."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from words_of(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from words_of(each)


def test_no_password_is_an_argument_of_a_process(rendered):
    processes = [
        service.get(name)
        for service in COMPOSE["services"].values()
        for name in ("command", "healthcheck", "pre_stop")
    ]
    for each in rendered:
        for container in (
            each.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
        ):
            processes += [
                container.get(name)
                for name in ("command", "args", "lifecycle", "readinessProbe", "livenessProbe")
            ]
    words = list(words_of(processes))
    assert len(words) > 80
    filled_in = {name for word in words for name in re.findall(r"(?<!\$)\$[({](\w+)", word)}
    assert filled_in <= {"POOL", "NAME", "LIMIT", "PREFECT_SERVER_API_AUTH_STRING"}


def redis_commands() -> dict[str, list[str]]:
    compose = [word.replace("$$", "$") for word in COMPOSE["services"]["redis"]["command"]]
    (pods,) = [
        each
        for each in objects((KUBERNETES / "redis.yaml").read_text())
        if "template" in each["spec"]
    ]
    return {
        "compose": compose,
        "kubernetes": pods["spec"]["template"]["spec"]["containers"][0]["args"],
    }


@pytest.fixture
def port() -> Iterator[int]:
    with kept_port() as port:
        yield port


@pytest.mark.parametrize("setup", ["compose", "kubernetes"])
def test_redis_asks_for_the_password_and_does_not_show_it(setup, port, tmp_path):
    program("redis-server")
    command = redis_commands()[setup]
    command[-1] = command[-1].replace("appendonly yes", f"appendonly yes\nport {port}")
    environment = os.environ | {"REDISCLI_AUTH": "canary"}
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log)
    try:
        client = redis.Redis(port=port, password="canary")

        def answers() -> bool:
            assert server.poll() is None
            with contextlib.suppress(redis.ConnectionError):
                return bool(client.ping())
            return False

        wait_until(answers)
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port).ping()
        assert b"canary" not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    finally:
        server.terminate()
    assert server.wait(SECONDS) == 0  # the shell is gone, so that a stop reaches Redis


def test_the_server_of_searches_is_asked_where_it_answers_and_has_time_to_stop():
    from expandr_cli.serve import GRACE_SECONDS

    pods, service = objects((KUBERNETES / "serve.yaml").read_text())
    pod = pods["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    port = container["args"][-1]
    assert container["ports"] == [{"name": "http", "containerPort": int(port)}]
    assert service["spec"]["selector"] == pods["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"] == {"path": "/health", "port": "http"}
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] >= GRACE_SECONDS + waits
    composed = COMPOSE["services"]["serve"]
    assert f":{composed['command'][-1]}/health" in composed["healthcheck"]["test"][-1]
    assert int(composed["stop_grace_period"].removesuffix("s")) > GRACE_SECONDS
    unit = (INFRA / "systemd" / "expandr-serve.service").read_text()
    assert int(re.findall(r"^TimeoutStopSec=(\d+)s$", unit, re.M)[0]) > GRACE_SECONDS


@pytest.mark.parametrize(("pool", "gpus"), [("cpu", None), ("gpu-infer", 1), ("gpu-train", 1)])
def test_a_worker_of_a_gpu_pool_has_a_gpu(rendered, pool, gpus):
    (worker,) = [each for each in rendered if each["metadata"]["name"] == f"worker-{pool}"]
    template = worker["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert template["metadata"]["labels"]["pool"] == pool
    assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert container["image"].partition("/")[2] == f"expandr-{'gpu' if gpus else 'cpu'}:0.1.0"


def test_systemd_knows_every_word_of_the_units(tmp_path):
    units = shutil.copytree(INFRA / "systemd", tmp_path / "units")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("prefect", "expandr", "python"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    for unit in units.glob("*.service"):
        unit.write_text(unit.read_text().replace("/opt/expandr/.venv/bin", str(programs)))
    worker = (units / "prefect-worker@.service").rename(units / "prefect-worker@gpu0.service")
    started = [units / f"prefect-{name}.service" for name in ("migrate", "api", "services")]
    started.append(units / "expandr-serve.service")
    said = run(
        "systemd-analyze", "verify", "--man=no", *started, worker,
        env={"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert str(units) not in said  # a word that it does not know is only a warning
