"""The command line: `python -m infra.local --help`."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from infra.local import lifecycle
from infra.local.cluster import Cluster, ClusterError

out = Console(markup=False, emoji=False, highlight=False)
app = typer.Typer(
    name="python -m infra.local",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A whole cluster on this machine, without containers, in a folder.",
)
FolderOption = Annotated[
    Path,
    typer.Option(
        envvar="EXPANDR_CLUSTER", help="Folder of the cluster; nothing outside it is written."
    ),
]
DEFAULT = Path("cluster")


def say(message: str) -> None:
    """Show a line of progress."""
    out.print(message, soft_wrap=True)


@app.command()
def up(
    folder: FolderOption = DEFAULT,
    port: Annotated[
        int | None,
        typer.Option(help="Port of the UI and the API; services use the ports that follow."),
    ] = None,
    workers: Annotated[
        list[str] | None,
        typer.Option(help="Number of workers in a pool, such as `gpu-infer=4`; repeatable."),
    ] = None,
) -> None:
    """Start the cluster, or the parts that are not running, and wait until it is ready."""
    folder = folder.absolute()
    try:
        cluster = Cluster.load(folder)
    except ClusterError:
        cluster = Cluster(folder=folder)
    counts = dict(cluster.workers)
    for setting in workers or []:
        pool, _, count = setting.partition("=")
        if pool not in counts or not count.isdigit():
            raise typer.BadParameter(f"{setting!r}: write POOL=NUMBER; pools: {', '.join(counts)}")
        counts[pool] = int(count)
    cluster = Cluster(folder=folder, port=port or cluster.port, workers=counts)
    lifecycle.up(cluster, say)
    say("UI login and the environment of the shell: python -m infra.local env")


@app.command()
def down(
    folder: FolderOption = DEFAULT,
    now: Annotated[bool, typer.Option("--now", help="Do not wait for runs.")] = False,
    patience: Annotated[
        float, typer.Option(help="Wait for runs at most this many seconds.")
    ] = 3600,
) -> None:
    """Take no new runs, wait for the active ones, then stop the cluster.

    Interrupted runs, and runs that wait for others, continue after the next `up`.
    """
    lifecycle.down(Cluster.load(folder.absolute()), say, now=now, patience=patience)


@app.command()
def status(folder: FolderOption = DEFAULT) -> None:
    """List the cluster's programs; exit with 1 unless all are running."""
    cluster = Cluster.load(folder.absolute())
    table = Table("program", "state", "process", box=None)
    rows = lifecycle.status(cluster)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    say(cluster.url)
    raise typer.Exit(any(state != "running" for _, state, _ in rows))


@app.command()
def logs(
    program: Annotated[str, typer.Argument(help="Name of a program, as listed by `status`.")],
    folder: FolderOption = DEFAULT,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new lines.")
    ] = False,
    lines: Annotated[int, typer.Option("-n", help="Lines to show.")] = 50,
) -> None:
    """Show the end of a program's log."""
    path = Cluster.load(folder.absolute()).folder / "logs" / f"{program}.log"
    if not path.exists():
        raise ClusterError(f"{path}: there is no such log")
    os.execvp("tail", ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)])


@app.command()
def env(folder: FolderOption = DEFAULT) -> None:
    """Print the environment of clients: `eval "$(python -m infra.local env)"`, then `prefect ...`."""
    for name, value in Cluster.load(folder.absolute()).client_environment().items():
        say(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    try:
        app()
    except ClusterError as error:
        raise SystemExit(f"error: {error}") from None
