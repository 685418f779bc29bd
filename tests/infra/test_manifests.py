"""Each file is what its reader expects, as far as schemas and linters can tell."""

import json
import shutil
import tomllib
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml
from outside import INFRA, run

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


def test_the_dockerfile_passes_hadolint():
    run("hadolint", INFRA / "docker" / "Dockerfile")


def test_what_an_image_installs_and_starts_is_let_into_its_build():
    project = tomllib.loads((INFRA.parent / "pyproject.toml").read_text())
    needed = [name.replace(".", "/") for name in project["tool"]["setuptools"]["packages"]]
    needed += [word for word in COMPOSE["services"]["services"]["command"] if "/" in word]
    ignored = (INFRA.parent / ".dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignored if line.startswith("!") and line != "!infra"]
    for path in needed:
        assert any(f"{path}/".startswith(f"{each}/") for each in let_in), path


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
    said = run(
        "systemd-analyze", "verify", "--man=no", *started, worker,
        env={"SYSTEMD_UNIT_PATH": f"{units}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert str(units) not in said  # a word that it does not know is only a warning
