"""What the server does by itself: end runs whose process is dead or never began, and tell somebody.

A process that is killed cannot say so: its run would stay "Running" for ever, hold its place in every
limit, and keep its parent waiting. Who asked for the run then begins it again (tasks/placement.py), or a
person retries it; an automation that retried would have no bound.
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
from flows.evaluate_suite import evaluate_suite
from flows.joint_loop import joint_loop
from flows.single_stage import single_stage

PREFIX = "expandr: "  # how the names of our automations begin; the others belong to people
NOTIFICATION = PREFIX + "a failure is reported"
NOTIFICATION_BLOCK = "expandr-failures"
STUCK_AFTER = {  # a container may have to wait for its image, or for a machine
    "process": timedelta(minutes=2),
    "docker": timedelta(minutes=30),
    "kubernetes": timedelta(minutes=30),
}
RUN = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
OURS = ResourceSpecification(
    {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"}
)
FOR_PEOPLE = ResourceSpecification(  # what fails in a run of `stage` is told by its parent
    {
        "prefect.resource.role": "flow",
        "prefect.resource.name": [flow.name for flow in (joint_loop, evaluate_suite, single_stage)],
    }
)


def automations(
    pool_type: PoolType, dead_after: timedelta, block: BlockDocument | None
) -> list[AutomationCore]:
    """List our automations; the notification only if there is a block to send it with."""
    ended = [
        _ended(
            "a dead run is crashed",
            "A run whose process sends no heartbeat any more is Crashed.",
            {"prefect.flow-run.heartbeat"},
            dead_after,
        ),
        _ended(
            "a stuck run is crashed",
            "A run that a worker took and never began, since the worker died, is Crashed.",
            {
                "prefect.flow-run.Pending",
                "prefect.flow-run.Submitting",
                "prefect.flow-run.InfrastructurePending",
            },
            STUCK_AFTER[pool_type],
        ),
    ]
    return ended + ([_notification(block)] if block else [])


def _ended(name: str, about: str, after: set[str], within: timedelta) -> AutomationCore:
    """Crash a run of ours from which nothing is heard for a while after an event."""
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
                message=f"Nothing was heard of this run for {within.total_seconds():g} seconds; its "
                "process or its worker is dead. Retry goes on from what is in the store.",
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


def notification_block(client: SyncPrefectClient, webhook: str) -> BlockDocument | None:
    """Find the block that sends notifications; make it if the URL of a webhook is given.

    Args:
        client: of the server.
        webhook: a URL that takes {"text": ...}, as Slack's and Mattermost's do. It is a secret: only
            the block keeps it, encrypted.
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
    """Create or update our automations, and remove those that left the code; a disabled one stays so."""
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
    if not block and NOTIFICATION not in there:
        changes.append(Change("automation", NOTIFICATION.removeprefix(PREFIX), "skipped", why))
    for name, found in there.items():
        client.delete_automation(found.id)
        detail = why if name == NOTIFICATION else ""
        changes.append(Change("automation", name.removeprefix(PREFIX), "removed", detail))
    return changes


def _from_code(automation: AutomationCore | Automation) -> dict[str, Any]:
    return automation.model_dump(include={"description", "tags", "trigger", "actions"})
