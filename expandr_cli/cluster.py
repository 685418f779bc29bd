"""Commands for clusters and for what runs leave behind: deploy, drain, resume, gc."""

import os
import time
from datetime import timedelta
from typing import Annotated, Literal

import typer

from expandr_cli.terminal import RESUME, StoreOption, absolute, fail, notify, out, user_errors

app = typer.Typer()


@app.command()
def deploy(
    store: StoreOption = "",
    pool_type: Annotated[
        Literal["process", "docker", "kubernetes"], typer.Option(help="Type of the work pools.")
    ] = "process",
    timezone: Annotated[str, typer.Option(help="Time zone of new schedules.")] = "UTC",
    dead_after: Annotated[
        int,
        typer.Option(
            min=1,
            help="Seconds without a heartbeat (sent every 30 s) after which a run counts as dead.",
        ),
    ] = 150,
    prune: Annotated[
        bool, typer.Option(help="Remove deployments that the code no longer has.")
    ] = True,
    reset: Annotated[
        bool,
        typer.Option(
            "--reset", help="Undo changes made in the UI to forms, schedules and templates."
        ),
    ] = False,
) -> None:
    """Create or update a cluster's work pools, deployments, schedules and automations.

    PREFECT_API_URL names the server. You can repeat the command at any time: paused pools stay paused,
    and settings changed in the UI stay as they are. If EXPANDR_NOTIFY_URL is set, failures are posted to
    that webhook.
    """
    from deployments.changes import table_of
    from deployments.deploy import deploy as deploy_all
    from deployments.deploy import next_steps, store_note

    with user_errors():
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
    out.print("", *steps, sep="\n", highlight=False, soft_wrap=True)
    if all(change.result in ("unchanged", "kept", "skipped") for change in changes):
        out.print("\nunchanged")


@app.command()
def drain(
    pools: Annotated[list[str], typer.Argument(help="Work pools, such as gpu-train.")],
    timeout: Annotated[float, typer.Option(min=0, help="Wait at most this many seconds.")] = 3600,
    resume: Annotated[bool, typer.Option("--resume", help="Un-pause the pools instead.")] = False,
) -> None:
    """Pause work pools and wait for their runs, so that their workers can be stopped.

    The pool `cpu` is drained first, because its loops need the other pools to finish.
    """
    from deployments.connection import connected
    from deployments.pools import drain as drain_pool
    from deployments.pools import set_paused

    with user_errors(), connected() as client:
        if resume:
            for pool in pools:
                set_paused(client, pool, False)
                out.print(f"{pool}: resumed", highlight=False)
            return
        deadline = time.monotonic() + timeout
        for pool in sorted(pools, key=lambda name: name != "cpu"):
            left = drain_pool(client, pool, deadline - time.monotonic(), out.print)
            if left:
                fail(
                    f"{pool}: {len(left)} runs are still active after {timeout:g} seconds; the pool is "
                    "paused. Wait longer, or cancel them; Retry continues from what is in the store"
                )
    named = " and ".join(pools)
    out.print(
        f"You can stop the workers of {named}. Afterwards: expandr drain --resume {' '.join(pools)}",
        soft_wrap=True,
    )


@app.command()
def resume(
    run_name: Annotated[
        str, typer.Argument(help="Name of the run, its id in Prefect, or 'latest'.")
    ] = "latest",
    store: Annotated[
        str, typer.Option(help="Folder or s3:// URL that the run is of; by default any.")
    ] = "",
) -> None:
    """Continue a run of the joint loop that failed, crashed, was killed or was cancelled.

    A run of a deployment continues on its workers; one started in a terminal continues here.
    """
    with user_errors(RESUME):
        from expandr_cli.results import print_summary
        from expandr_cli.resume import resume as resume_run
        from expandr_cli.temporary_server import prefect_server
        from tasks.stage import open_store

        with prefect_server(notify):
            summary = resume_run(out, run_name, absolute(store) if store else "")
        if summary:
            print_summary(out, open_store(summary.store), summary)


@app.command()
def gc(
    keep_runs: Annotated[
        int | None,
        typer.Option(min=0, help="Keep only this many of the latest runs."),
    ] = None,
    older_than: Annotated[
        str,
        typer.Option(
            help="Keep anything younger: 12h, 30d, 8w. Must be longer than any run takes!"
        ),
    ] = "7d",
    delete: Annotated[bool, typer.Option("--delete", help="Remove what is listed.")] = False,
    store: StoreOption = "store",
) -> None:
    """List artifacts that no kept run needs and leftovers of dead work; `--delete` removes them.

    Everything a kept run used stays, back to the data, and so do the runs that aliases name or can be
    rolled back to. Active runs protect what they have made and found. Scratch folders and downloads are
    cleaned only on this machine.
    """
    from expandr_cli.gc import collect_garbage, parse_age
    from tasks.stage import open_store

    with user_errors():
        collect_garbage(out, open_store(store), keep_runs, parse_age(older_than), delete)
