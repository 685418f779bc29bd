"""Commands for clusters and for what runs leave behind: deploy, drain, resume, gc."""

import os
import time
from datetime import timedelta
from typing import Annotated, Literal

import typer

from expandr_cli.terminal import StoreOption, complaints, fail, out, say

app = typer.Typer()


@app.command()
def deploy(
    store: StoreOption = "",
    pool_type: Annotated[
        Literal["process", "docker", "kubernetes"], typer.Option(help="Of the work pools.")
    ] = "process",
    timezone: Annotated[str, typer.Option(help="Of new schedules.")] = "UTC",
    dead_after: Annotated[
        int,
        typer.Option(
            min=1,
            help="Seconds without a heartbeat after which a run is dead: three or more of them.",
        ),
    ] = 150,
    prune: Annotated[bool, typer.Option(help="Remove deployments that left the code.")] = True,
    reset: Annotated[
        bool,
        typer.Option("--reset", help="Undo changes made in the UI to forms, schedules, templates."),
    ] = False,
) -> None:
    """Create or update a cluster's work pools, deployments, schedules and automations.

    The server is the one that PREFECT_API_URL names. Again and again it does the same: what was paused
    stays paused, and what people set in the UI stays. EXPANDR_NOTIFY_URL, the URL of a webhook, is told
    of failures.
    """
    from deployments.changes import table_of
    from deployments.deploy import deploy as deploy_all
    from deployments.deploy import next_steps, store_note

    with complaints():
        note = store_note(store)
        changes = deploy_all(
            store,
            pool_type,
            timezone,
            timedelta(seconds=dead_after),
            os.environ.get("EXPANDR_NOTIFY_URL", ""),
            prune,
            reset,
        )
        steps = [*([note] if note else []), *next_steps()]
    out.print(table_of(changes), highlight=False)
    out.print("", *steps, sep="\n", highlight=False, markup=False, soft_wrap=True)
    if all(change.result in ("unchanged", "kept", "skipped") for change in changes):
        out.print("\nunchanged")


@app.command()
def drain(
    pools: Annotated[list[str], typer.Argument(help="Work pools, such as gpu-train.")],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 3600,
    resume: Annotated[bool, typer.Option("--resume", help="Un-pause the pools instead.")] = False,
) -> None:
    """Pause work pools and wait until nothing goes on in them, so that their workers can be stopped.

    The pool `cpu` is drained first if it is named: its loops need the others to end.
    """
    from deployments.connection import connected
    from deployments.pools import drain as drain_pool
    from deployments.pools import set_paused

    with complaints(), connected() as client:
        if resume:
            for pool in pools:
                set_paused(client, pool, False)
                out.print(f"{pool}: goes on", highlight=False)
            return
        deadline = time.monotonic() + timeout
        for pool in sorted(pools, key=lambda name: name != "cpu"):
            left = drain_pool(client, pool, deadline - time.monotonic(), out.print)
            if left:
                fail(
                    f"{pool}: {len(left)} runs still go on after {timeout:g} seconds; the pool is "
                    "paused. Wait longer, or cancel them: Retry goes on from what is in the store"
                )
    named = " and ".join(pools)
    out.print(
        f"The workers of {named} may be stopped. Afterwards: expandr drain --resume {' '.join(pools)}",
        soft_wrap=True,
    )


@app.command()
def resume(
    run_name: Annotated[str, typer.Argument(help="Name or id of the run in Prefect.")] = "latest",
) -> None:
    """Go on with a run of the joint loop that failed, crashed, or was killed or cancelled.

    A run of a deployment goes on where its workers are; one started in a terminal goes on here.
    """
    with complaints("`expandr resume` goes on with it; what was finished is found in the store"):
        from expandr_cli.resume import resume as resume_run
        from expandr_cli.show import print_summary
        from expandr_cli.temporary_server import prefect_server
        from tasks.stage import open_store

        with prefect_server(say):
            summary = resume_run(out, run_name)
        if summary:
            print_summary(out, open_store(summary.store), summary)


@app.command()
def gc(
    keep_runs: Annotated[
        int | None,
        typer.Option(min=0, help="Keep this many of the latest runs, not all."),
    ] = None,
    older_than: Annotated[
        str, typer.Option(help="Let nothing younger go: 12h, 30d, 8w. Longer than any run takes!")
    ] = "7d",
    delete: Annotated[bool, typer.Option("--delete", help="Remove it, not only list it.")] = False,
    store: StoreOption = "store",
) -> None:
    """List what no kept run needs and what dead work left behind, with sizes; `--delete` removes it.

    What a kept run used stays, and all that it was made of, up to the data. Of scratch folders and
    downloads only those of this machine are seen. A run that goes on keeps what it has made and found.
    """
    from expandr_cli.gc import collect_garbage, parse_age
    from tasks.stage import open_store

    with complaints():
        collect_garbage(out, open_store(store), keep_runs, parse_age(older_than), delete)
