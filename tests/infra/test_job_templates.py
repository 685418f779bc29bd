"""Prefect takes the job templates, and a job gets what a stage needs."""

import asyncio
import json
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.templating import apply_values
from prefect.workers.base import BaseJobConfiguration

from deployments.plan import POOLS
from deployments.pools import job_template

pytestmark = pytest.mark.usefixtures("prefect_server")


def job(kind: Any, **variables) -> BaseJobConfiguration:
    """Make a job as a worker does."""
    template = job_template(kind, "cpu")
    return asyncio.run(BaseJobConfiguration.from_template_and_values(template, variables))


def filled(kind: Any, pool: str, **variables) -> dict:
    """The job of a pool whose form nobody has touched."""
    template = job_template(kind, pool)
    defaults = {
        name: field["default"]
        for name, field in template["variables"]["properties"].items()
        if field.get("default") is not None
    }
    return apply_values(template["job_configuration"], defaults | variables)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_prefect_makes_a_pool_of_the_template(kind, pool):
    template = job_template(kind, pool)
    with get_client(sync_client=True) as client:
        made = client.create_work_pool(
            WorkPoolCreate(name=f"{kind}-{pool}", type=kind, base_job_template=template)
        )
    assert made.base_job_template == template


@pytest.mark.parametrize(("pool", "gpus"), [("cpu", 0), ("gpu-infer", 1), ("gpu-train", 1)])
def test_the_containers_of_gpu_pools_have_a_gpu_and_its_libraries(pool, gpus):
    image = f"expandr-{'gpu' if gpus else 'cpu'}:0.1.0"
    docker = filled("docker", pool)
    devices = docker["container_create_kwargs"].get("device_requests", [])
    assert docker["container_create_kwargs"]["cap_drop"] == ["ALL"]
    assert docker["container_create_kwargs"]["security_opt"] == ["no-new-privileges"]
    assert (docker["image"], [each["count"] for each in devices]) == (image, [1] * gpus)
    pod = filled("kubernetes", pool)["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == image
    assert container["resources"]["limits"]["nvidia.com/gpu"] == gpus


def test_a_container_gets_the_secrets_of_its_worker_but_the_template_has_none(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    environment = job("docker", env={"EXPANDR_CACHE_GB": "7"}).env
    assert environment["AWS_SECRET_ACCESS_KEY"] == "canary"
    assert environment["EXPANDR_SCRATCH"] == "/scratch"
    assert environment["EXPANDR_CACHE_GB"] == "7"
    assert "canary" not in json.dumps(job_template("docker", "cpu"))


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_a_job_sends_the_heartbeats_that_the_automation_waits_for(kind):
    environment = job(kind, env={"EXPANDR_CACHE_GB": "7"}).env
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert environment["EXPANDR_CACHE_GB"] == "7"


@pytest.mark.parametrize("pool", ["cpu", "gpu-train"])
def test_the_kubernetes_job_follows_the_schema(pool):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    job = filled("kubernetes", pool, name="run", command=["prefect"])["job_manifest"]
    pod = job["spec"]["template"]["spec"]
    # What the worker does at last: the environment as a list, and away with two fields that
    # prefect-kubernetes insists on and Kubernetes ignores.
    pod["containers"][0]["env"] = [
        {"name": name, "value": value} for name, value in pod["containers"][0]["env"].items()
    ]
    del pod["completions"], pod["parallelism"]
    kubernetes_validate.validate(job, "1.32", strict=True)
