"""The work pools, deployments and schedules of a cluster."""

import importlib.metadata
from dataclasses import dataclass
from typing import Any, Literal

from prefect import Flow

from expandr_core.errors import DataError
from flows.ablate import ablate
from flows.ablation_lines import read_ablations
from flows.compare_runs import compare_runs
from flows.evaluate_suite import evaluate_suite
from flows.joint_loop import joint_loop
from flows.option_paths import put
from flows.presets import CONFIGS
from flows.single_stage import single_stage
from flows.stage import stage
from tasks.placement import SPREAD

PoolType = Literal["process", "docker", "kubernetes"]
TAG = "expandr"  # on deployments, and through them on runs
VERSION = f"expandr {importlib.metadata.version('expandr-on-prefect')}"
SLUG = "expandr-"  # prefix of our schedules; others belong to people

POOLS = {
    "cpu": "The loops themselves, and what needs no GPU.",
    "gpu-infer": "Generation and encoding; one worker per GPU, each with --limit 1.",
    "gpu-train": "DPO and retriever training; one worker per GPU or set of GPUs, with --limit 1.",
}


@dataclass(frozen=True)
class Schedule:
    """When a deployment runs; new schedules are paused.

    Attributes:
        slug: marks it as ours.
        cron: minute, hour, day of the month, month, day of the week.
        timezone: such as Europe/Berlin.
    """

    slug: str
    cron: str
    timezone: str


@dataclass(frozen=True)
class Deployment:
    """A flow on a work pool.

    Attributes:
        parameters: initial values of its form.
        limit: concurrent runs; more are cancelled.
    """

    flow: Flow[..., Any]
    name: str
    pool: str
    description: str
    parameters: dict[str, Any]
    schedules: tuple[Schedule, ...] = ()
    limit: int | None = None

    @property
    def full_name(self) -> str:
        """The name on Prefect's command line: flow/deployment."""
        return f"{self.flow.name}/{self.name}"

    @property
    def entrypoint(self) -> str:
        """The path from which workers import the flow; they have the package installed."""
        return f"{self.flow.fn.__module__}.{self.flow.fn.__name__}"


def plan(store: str, timezone: str) -> list[Deployment]:
    """List the deployments of a cluster that keeps its artifacts in `store`."""
    loop: dict[str, Any] = {"preset": "demo", "placement": SPREAD.model_dump(), "store": store}
    weekly = Schedule(f"{SLUG}weekly", "0 3 * * 0", timezone)
    return [
        Deployment(
            joint_loop,
            "manual",
            "cpu",
            "The joint loop, started by hand: choose a preset, change what you like.",
            loop,
        ),
        Deployment(
            joint_loop,
            "weekly",
            "cpu",
            "The joint loop by schedule, one run at a time: a run that comes due meanwhile is "
            "cancelled. What it finds in the store, it does not make again. Its models become the "
            "champion if they are better (promotion.enabled).",
            {**loop, "options": {"promotion": {"enabled": True}}},
            schedules=(weekly,),
            limit=1,
        ),
        Deployment(
            evaluate_suite,
            "manual",
            "cpu",
            "Measure models on BEIR, NanoBEIR or other datasets, and compare them.",
            {"placement": SPREAD.model_dump(), "store": store},
        ),
        Deployment(
            ablate,
            "manual",
            "cpu",
            "Change one thing after another, and compare all in one table. The lines are those of "
            "configs/ablations.yaml; remove some, or write your own.",
            {**loop, **_listed_ablations()},
        ),
        Deployment(
            single_stage,
            "manual",
            "cpu",
            "One stage alone, on artifacts of earlier runs.",
            {"placement": SPREAD.model_dump(), "store": store},
        ),
        Deployment(
            compare_runs,
            "manual",
            "cpu",
            "What finished runs reached, tested where their queries are the same, and why they differ.",
            {"stores": [store]},
        ),
        *(
            Deployment(stage, pool, pool, "Started by other flows, not by people.", {})
            for pool in POOLS
        ),
    ]


def _listed_ablations() -> dict[str, Any]:
    """Return the initial lines and base of the ablations' form."""
    listed = read_ablations(CONFIGS / "ablations.yaml")
    options: dict[str, Any] = {}
    for name, value in listed.base.items():
        put(options, tuple(name.split(".")), value)
    return {"lines": [line.model_dump(mode="json") for line in listed.lines], "options": options}


def check_store(store: str) -> str:
    """Return the store if all workers can find it.

    Raises:
        DataError: if it is missing, or a relative folder, which means another one to each worker.
    """
    if not store:
        raise DataError(
            "name the workers' store: --store s3://bucket/prefix, or an absolute folder that all of "
            "them share, or EXPANDR_STORE"
        )
    if "://" not in store and not store.startswith("/"):
        raise DataError(
            f"--store {store}: a relative folder, which means another one to each worker; give an "
            "absolute folder that all of them share, or s3://bucket/prefix"
        )
    if "@" in store.partition("://")[2].partition("/")[0]:
        raise DataError(
            "a URL must not carry credentials, as the UI would show them; put them into the "
            "workers' environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )
    return store
