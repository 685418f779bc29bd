"""Deploy everything: create, update, keep, remove; again and again with the same result."""

from datetime import timedelta

from deployments.apply import apply_deployment, remove_others
from deployments.automations import apply_automations, notification_block
from deployments.changes import Change
from deployments.connection import connected
from deployments.plan import POOLS, PoolType, check_store, plan
from deployments.pools import apply_pool


def deploy(
    store: str,
    pool_type: PoolType = "process",
    timezone: str = "UTC",
    dead_after: timedelta = timedelta(seconds=150),
    webhook: str = "",
    prune: bool = True,
    reset: bool = False,
) -> list[Change]:
    """Make the server's pools, deployments, schedules and automations what the code says.

    Args:
        store: where all workers keep artifacts.
        pool_type: of the work pools.
        timezone: of new schedules.
        dead_after: a run is dead if nothing is heard of it for so long; several heartbeats.
        webhook: URL that failures are sent to; empty for the notification block that is there, if any.
        prune: remove deployments of ours that left the code.
        reset: take back what people changed in parameters, schedules and job templates.

    Raises:
        DataError: if the server or the store cannot be used; nothing is changed then.
    """
    wanted = plan(check_store(store), timezone)
    with connected() as client:
        changes = [
            apply_pool(client, name, about, pool_type, reset) for name, about in POOLS.items()
        ]
        for deployment in wanted:
            changes += apply_deployment(client, deployment, reset)
        if prune:
            changes += remove_others(client, wanted)
        block = notification_block(client, webhook)
        changes += apply_automations(client, pool_type, dead_after, block)
    return changes
