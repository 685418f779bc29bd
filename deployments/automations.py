"""Automations of the server: crash dead runs, and report failures and the gate's decisions.

A killed process cannot report its end: its run would stay "Running" for ever, count against every
limit, and keep its parent waiting. Crashed runs are started again by their parents (tasks/placement.py)
or by people; an automation that retried would never stop.
"""

from datetime import timedelta
from typing import Any

from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import BlockDocument, StateType
from prefect.client.schemas.sorting import AutomationSort
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.types import SecretDict

from deployments.changes import Change, result_of
from deployments.plan import TAG, PoolType
from flows.ablate import ablate
from flows.compare_runs import compare_runs
from flows.evaluate_suite import evaluate_suite
from flows.joint_loop import joint_loop
from flows.promotion import EVENT
from flows.single_stage import single_stage

PREFIX = "expandr: "  # of our automations; others belong to people
NOTIFICATION = PREFIX + "a failure is reported"
PROMOTION = PREFIX + "a decision about a champion is reported"
NOTIFICATION_BLOCK = "expandr-failures"
STUCK_AFTER = {  # containers may wait for images or machines
    "process": timedelta(minutes=2),
    "docker": timedelta(minutes=30),
    "kubernetes": timedelta(minutes=30),
}
RUN = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
OURS = ResourceSpecification(
    {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"}
)
FOR_PEOPLE = ResourceSpecification(  # failures in a run of `stage` are reported by its parent
    {
        "prefect.resource.role": "flow",
        "prefect.resource.name": [
            flow.name for flow in (joint_loop, evaluate_suite, ablate, single_stage, compare_runs)
        ],
    }
)


def automations(
    pool_type: PoolType, dead_after: timedelta, block: BlockDocument | None
) -> list[AutomationCore]:
    """List our automations; the notification needs a block."""
    ended = [
        _ended(
            "a dead run is crashed",
            "A run whose process no longer sends heartbeats is Crashed.",
            {"prefect.flow-run.heartbeat"},
            dead_after,
        ),
        _ended(
            "a stuck run is crashed",
            "A run that a worker picked up but never started, because the worker died, is Crashed.",
            {
                "prefect.flow-run.Pending",
                "prefect.flow-run.Submitting",
                "prefect.flow-run.InfrastructurePending",
            },
            STUCK_AFTER[pool_type],
        ),
    ]
    return ended + ([_notification(block), _promotion(block)] if block else [])


def _ended(name: str, about: str, after: set[str], within: timedelta) -> AutomationCore:
    """Crash a run of ours that stays silent after an event."""
    return AutomationCore(
        name=PREFIX + name,
        description=about,
        tags=[TAG],
        trigger=EventTrigger(
            after=after,
            expect={"prefect.flow-run.*"},
            match=RUN,
            match_related=OURS,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                force=False,
                state=StateType.CRASHED,
                message=f"This run has been silent for {within.total_seconds():g} seconds; its process "
                "or its worker is dead. A retry continues from the store.",
            )
        ],
    )


def _notification(block: BlockDocument) -> AutomationCore:
    return AutomationCore(
        name=NOTIFICATION,
        description=f"Sent through the notification block {NOTIFICATION_BLOCK!r}.",
        tags=[TAG],
        trigger=EventTrigger(
            expect={
                "prefect.flow-run.Failed",
                "prefect.flow-run.Crashed",
                "prefect.flow-run.TimedOut",
            },
            match=RUN,
            match_related=[OURS, FOR_PEOPLE],
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block.id,
                subject="ExpandR: {{ flow.name }} {{ flow_run.name }} {{ flow_run.state.name }}",
                body="{{ flow_run.state.message }}\n{{ flow_run|ui_url or flow_run.id }}",
            )
        ],
    )


def _promotion(block: BlockDocument) -> AutomationCore:
    return AutomationCore(
        name=PROMOTION,
        description="New models were promoted, or refused; sent through the notification block "
        f"{NOTIFICATION_BLOCK!r}.",
        tags=[TAG],
        trigger=EventTrigger(
            expect={f"{EVENT}.*"},
            match=ResourceSpecification({"prefect.resource.id": "expandr.model.*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            SendNotification(
                block_document_id=block.id,
                subject="ExpandR: {{ event.payload.model }} {{ event.payload.outcome }}",
                body="{{ event.payload.reason }}\nrun {{ event.payload.run }}",
            )
        ],
    )


def notification_block(client: SyncPrefectClient, webhook: str) -> BlockDocument | None:
    """Return the block that sends notifications; create it if a webhook is given.

    Args:
        client: of the server.
        webhook: a URL that accepts {"text": ...}, as Slack's and Mattermost's do. It is a secret,
            stored encrypted in the block only.
    """
    if webhook:
        CustomWebhookNotificationBlock(
            name=NOTIFICATION_BLOCK,
            url="{{webhook}}",
            headers=None,
            cookies=None,
            json_data={"text": "{{subject}}\n{{body}}"},
            secrets=SecretDict({"webhook": webhook}),
        ).save(NOTIFICATION_BLOCK, overwrite=True)
    for block in client.read_block_documents(offset=0, limit=200, include_secrets=False):
        schema = block.block_schema
        if block.name == NOTIFICATION_BLOCK and schema and "notify" in schema.capabilities:
            return block
    return None


def apply_automations(
    client: SyncPrefectClient,
    pool_type: PoolType,
    dead_after: timedelta,
    block: BlockDocument | None,
) -> list[Change]:
    """Create or update our automations, remove obsolete ones, and keep disabled ones disabled."""
    there = {
        each.name: each
        for each in client.read_automations(sort=AutomationSort.NAME_ASC, limit=200)
        if each.name.startswith(PREFIX)
    }
    changes = []
    for wanted in automations(pool_type, dead_after, block):
        found = there.pop(wanted.name, None)
        name = wanted.name.removeprefix(PREFIX)
        if not found:
            client.create_automation(wanted)
            changes.append(Change("automation", name, "created"))
            continue
        updated = [
            key for key, value in _from_code(wanted).items() if _from_code(found)[key] != value
        ]
        if updated:
            client.update_automation(found.id, wanted.model_copy(update={"enabled": found.enabled}))
        kept = [] if found.enabled else ["disabled"]
        changes.append(Change("automation", name, *result_of(updated, kept)))
    why = (
        f"no notification block {NOTIFICATION_BLOCK!r}: create one in the UI (Blocks), or set "
        "EXPANDR_NOTIFY_URL to a webhook's URL, and deploy again"
    )
    for name in sorted({NOTIFICATION, PROMOTION} - there.keys()) if not block else ():
        changes.append(Change("automation", name.removeprefix(PREFIX), "skipped", why))
    for name, found in there.items():
        client.delete_automation(found.id)
        detail = why if name in (NOTIFICATION, PROMOTION) else ""
        changes.append(Change("automation", name.removeprefix(PREFIX), "removed", detail))
    return changes


def _from_code(automation: AutomationCore | Automation) -> dict[str, Any]:
    return automation.model_dump(include={"description", "tags", "trigger", "actions"})
