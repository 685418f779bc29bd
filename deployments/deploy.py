"""Deploy everything, idempotently."""

from datetime import timedelta
from tempfile import TemporaryDirectory

from prefect.utilities.urls import url_for

from deployments.apply import apply_deployment, remove_others
from deployments.automations import apply_automations, notification_block
from deployments.changes import Change
from deployments.connection import connected
from deployments.plan import POOLS, PoolType, check_store, plan
from deployments.pools import apply_pool, check_dead_after
from expandr_core.store.store import Store
from tasks.placement import online_workers, worker_command


def deploy(
    store: str,
    pool_type: PoolType = "process",
    timezone: str = "UTC",
    dead_after: timedelta = timedelta(seconds=150),
    webhook: str = "",
    prune: bool = True,
    reset: bool = False,
) -> list[Change]:
    """Make the server's pools, deployments, schedules and automations match the code.

    Args:
        store: shared by all workers.
        pool_type: of the work pools.
        timezone: of new schedules.
        dead_after: silence after which a run is dead; three heartbeats or more.
        webhook: URL to report failures to; empty to use the existing notification block, if any.
        prune: remove our deployments that are no longer in the code.
        reset: discard what people changed in parameters, schedules and job templates.

    Raises:
        DataError: before any change, if the server or the store cannot be used, or healthy runs would
            count as dead.
    """
    wanted = plan(check_store(store), timezone)
    with connected() as client:
        check_dead_after(client, list(POOLS), dead_after, reset)
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


def store_note(store: str) -> str:
    """Report what an S3 server lacks, or that it is out of reach.

    Raises:
        DataError: if there is no such bucket.
    """
    if not store.startswith("s3://"):
        return ""
    from botocore.exceptions import BotoCoreError

    from expandr_core.store.leases import no_leases

    try:
        with TemporaryDirectory() as scratch:
            lacking = Store(store, scratch).leases.lacking()
    except (OSError, BotoCoreError) as error:
        return f"The store {store} could not be reached from here ({error}); workers must reach it."
    return f"Note: {no_leases(lacking)}." if lacking else ""


def next_steps() -> list[str]:
    """List the next steps: start missing workers, then a run."""
    with connected() as client:
        missing = [pool for pool in POOLS if not online_workers(client, pool)]
        loop = client.read_deployment_by_name("joint-loop/manual")
    steps, word = [], "Next"
    if missing:
        alone = " (the preset tiny needs that of cpu alone)" if "cpu" in missing else ""
        steps = [
            "Next: start a worker of each pool, where the store can be reached, in a terminal of its own"
            f"{alone}:",
            *(f"    {worker_command(pool)}" for pool in missing),
        ]
        word = "Then"
    return [
        *steps,
        f"{word}: start a run, by Run on {url_for('deployment', loop.id)} or by",
        "    prefect deployment run joint-loop/manual --param preset=tiny",
    ]
