"""Prefect takes the job templates, and a job gets what a stage needs."""

import asyncio
import json

import pytest
from outside import INFRA
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.workers.base import BaseJobConfiguration

pytestmark = pytest.mark.usefixtures("prefect_server")


def template(kind: str) -> dict:
    return json.loads((INFRA / "job-templates" / f"{kind}.json").read_text())


def job(kind: str, **variables) -> BaseJobConfiguration:
    """Make a job as a worker does."""
    return asyncio.run(BaseJobConfiguration.from_template_and_values(template(kind), variables))


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_prefect_makes_a_pool_of_the_template(kind):
    with get_client(sync_client=True) as client:
        made = client.create_work_pool(
            WorkPoolCreate(name=f"pool-{kind}", type=kind, base_job_template=template(kind))
        )
    assert made.base_job_template == template(kind)


def test_a_container_gets_the_secrets_of_its_worker_but_the_template_has_none(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    environment = job("docker", env={"EXPANDR_CACHE_GB": "7"}).env
    assert environment["AWS_SECRET_ACCESS_KEY"] == "canary"
    assert environment["EXPANDR_SCRATCH"] == "/scratch"
    assert environment["EXPANDR_CACHE_GB"] == "7"
    assert "canary" not in json.dumps(template("docker"))


def test_the_kubernetes_job_follows_the_schema(monkeypatch):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    from prefect.utilities.templating import apply_values

    variables = {
        name: field["default"]
        for name, field in template("kubernetes")["variables"]["properties"].items()
        if field.get("default") is not None
    }
    filled = apply_values(
        template("kubernetes")["job_configuration"]["job_manifest"],
        variables | {"gpus": 1, "name": "run", "command": ["prefect"]},
    )
    pod = filled["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    # What the worker does at last: the environment as a list, and away with two fields that
    # prefect-kubernetes insists on and Kubernetes ignores.
    pod["containers"][0]["env"] = [
        {"name": name, "value": value} for name, value in pod["containers"][0]["env"].items()
    ]
    del pod["completions"], pod["parallelism"]
    kubernetes_validate.validate(filled, "1.32", strict=True)
