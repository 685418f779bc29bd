"""Create or update one deployment, and its schedules."""

import json
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.client.schemas.sorting import DeploymentSort
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from deployments.changes import Change, result_of
from deployments.forms import form
from deployments.plan import SLUG, TAG, VERSION, Deployment, Schedule
from expandr_core.errors import DataError


def apply_deployment(client: SyncPrefectClient, wanted: Deployment, reset: bool) -> list[Change]:
    """Create or update a deployment and its schedules.

    Prefect's `apply` would un-pause deployments and overwrite what people set.
    """
    try:
        there = client.read_deployment_by_name(wanted.full_name)
    except ObjectNotFound:
        _create(client, wanted)
        change = Change("deployment", wanted.full_name, "created", f"on {wanted.pool}")
        there = client.read_deployment_by_name(wanted.full_name)
    else:
        change = _update(client, wanted, there, reset)
    return [change, *_apply_schedules(client, wanted, there, reset)]


def _create(client: SyncPrefectClient, wanted: Deployment) -> None:
    fields = _from_code(wanted)
    flow_id = client.create_flow_from_name(wanted.flow.name)
    client.create_deployment(flow_id, wanted.name, parameters=wanted.parameters, **fields)


def _from_code(wanted: Deployment) -> dict[str, Any]:
    """Return the fields that the code defines."""
    return {
        "version": VERSION,
        "description": wanted.description,
        "tags": [TAG],
        "work_pool_name": wanted.pool,
        "entrypoint": wanted.entrypoint,
        "parameter_openapi_schema": form(wanted.flow),
        "enforce_parameter_schema": True,
        "concurrency_limit": wanted.limit,
        "concurrency_options": ConcurrencyOptions(
            collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        )
        if wanted.limit
        else None,
    }


def _update(
    client: SyncPrefectClient, wanted: Deployment, there: DeploymentResponse, reset: bool
) -> Change:
    fields = _from_code(wanted)
    fields["tags"] = sorted({*there.tags, TAG})
    limit = there.global_concurrency_limit
    live = {name: getattr(there, name, None) for name in fields}
    live |= {"concurrency_limit": limit.limit if limit else None, "tags": sorted(there.tags)}
    changes = {name: value for name, value in fields.items() if _plain(live[name]) != _plain(value)}

    parameters = wanted.parameters
    if not reset:  # only the store is ours; the rest of the form belongs to people
        store = {"store": wanted.parameters["store"]} if "store" in wanted.parameters else {}
        parameters = {**there.parameters, **store}
    kept = [name for name, value in wanted.parameters.items() if parameters.get(name) != value]
    kept += [name for name in parameters if name not in wanted.parameters]
    if parameters != there.parameters:
        changes["parameters"] = parameters
    if changes:
        try:
            client.update_deployment(there.id, DeploymentUpdate(**changes))
        except PrefectHTTPStatusError as error:
            raise DataError(
                f"deployment {wanted.full_name}: {error.response.text}; if parameters set in the UI no "
                "longer fit, `expandr deploy --reset` restores ours"
            ) from error
    kept = [f"parameter {name}" for name in kept] + (["paused"] if there.paused else [])
    kept += ["job variables"] if there.job_variables else []
    return Change("deployment", wanted.full_name, *result_of(list(changes), kept))


def _plain(value: Any) -> Any:
    """Reduce a value to plain JSON types."""
    return json.loads(
        json.dumps(value, default=lambda model: model.model_dump(mode="json", exclude_none=True))
    )


def _apply_schedules(
    client: SyncPrefectClient, wanted: Deployment, there: DeploymentResponse, reset: bool
) -> list[Change]:
    """Create, keep or remove our schedules; other people's lack our slug and stay."""
    changes = []
    ours = {
        schedule.slug: schedule
        for schedule in there.schedules
        if schedule.slug and schedule.slug.startswith(SLUG)
    }
    for schedule in wanted.schedules:
        name = f"{wanted.full_name} {schedule.slug}"
        found = ours.pop(schedule.slug, None)
        if not found:
            created = DeploymentScheduleCreate(
                schedule=_cron(schedule), active=False, slug=schedule.slug
            )
            client.create_deployment_schedules(there.id, [created])
            detail = f"{schedule.cron} {schedule.timezone}, paused"
            changes.append(Change("schedule", name, "created", detail))
            continue
        differs = found.schedule != _cron(schedule) or bool(found.parameters)
        if differs and reset:
            client.update_deployment_schedule(
                there.id, found.id, schedule=_cron(schedule), parameters={}
            )
        kept = ["its timing or parameters"] if differs and not reset else []
        kept += ["active"] if found.active else []
        updated = ["timing and parameters"] if differs and reset else []
        changes.append(Change("schedule", name, *result_of(updated, kept)))
    for slug, schedule in ours.items():
        client.delete_deployment_schedule(there.id, schedule.id)
        changes.append(Change("schedule", f"{wanted.full_name} {slug}", "removed"))
    return changes


def _cron(schedule: Schedule) -> CronSchedule:
    return CronSchedule(cron=schedule.cron, timezone=schedule.timezone)


def remove_others(client: SyncPrefectClient, wanted: list[Deployment]) -> list[Change]:
    """Remove our deployments that are no longer in the code.

    Ours have both our tag and our version; copies that people made have only the tag.
    """
    ours = client.read_deployments(
        deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG])),
        sort=DeploymentSort.NAME_ASC,
        limit=200,
    )
    names = {(deployment.flow.name, deployment.name) for deployment in wanted}
    changes = []
    for deployment in ours:
        flow = client.read_flow(deployment.flow_id).name
        made_by_us = (deployment.version or "").startswith("expandr ")
        if made_by_us and (flow, deployment.name) not in names:
            client.delete_deployment(deployment.id)
            changes.append(Change("deployment", f"{flow}/{deployment.name}", "removed"))
    return changes
