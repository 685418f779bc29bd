"""Show a complete cluster at work: `python -m infra.local.demo`.

Starts the cluster, deploys to it, starts the joint loop through the web UI's form, and waits. Then it
compares every artifact with that of the same loop run without a cluster, and lists which worker made
what.
"""

import os
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import typer

from infra.local import browser, lifecycle
from infra.local.__main__ import say
from infra.local.cluster import Cluster, ClusterError, find_program
from tasks.stage import open_store

POLL_SECONDS = 2.0
Step = tuple[str, str]  # title, digest


def main(
    preset: Annotated[
        Literal["demo", "tiny"], typer.Option(help="`demo` takes minutes, `tiny` about one.")
    ] = "demo",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run.")] = 0,
    folder: Annotated[Path, typer.Option(help="Folder of the cluster.")] = Path("cluster"),
    port: Annotated[int, typer.Option(help="Public port.")] = 4200,
    store: Annotated[
        str,
        typer.Option(
            help="Store of the local run to compare with; the loop runs there if it has not."
        ),
    ] = "store",
    minutes: Annotated[float, typer.Option(help="Give up after this many minutes.")] = 90,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster running.")] = False,
) -> None:
    """Run the joint loop on a cluster from its web UI, and compare it with a local run."""
    cluster = Cluster(folder=folder.absolute(), port=port)
    try:
        try:
            lifecycle.up(cluster, say)
            os.environ.update(cluster.client_environment())
            _deploy(cluster)
            same = _run(cluster, preset, seed, store, minutes * 60)
        finally:
            if not keep:
                lifecycle.down(cluster, say, now=True, patience=0)
    except ClusterError as error:
        raise SystemExit(f"error: {error}") from None
    raise typer.Exit(not same)


def _deploy(cluster: Cluster) -> None:
    done = subprocess.run(
        [find_program("expandr"), "deploy"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ClusterError(f"expandr deploy failed: {done.stdout}{done.stderr}")
    say(f"deployed to {cluster.url}")


def _run(cluster: Cluster, preset: str, seed: int, store: str, seconds: float) -> bool:
    """Run the loop from the UI, take screenshots, and compare; return whether all is well."""
    shots = cluster.folder / "screenshots"
    secret = cluster.client_environment()["PREFECT_API_AUTH_STRING"]
    with browser.opened(cluster.url, secret) as page:
        deployment = lifecycle.api(cluster, "GET", "/deployments/name/joint-loop/manual")["id"]
        fields = {"preset": preset, "options.Seed": str(seed)}
        if preset == "tiny":  # change the placement, or the loop would run all stages itself
            fields["placement.Embed"] = "here"
        run = browser.start_run(page, cluster.url, deployment, fields, shots)
        address = f"{cluster.url}/v2/runs/flow-run/{run}"
        say(f"started through the form: {address}")
        _follow(cluster, run, seconds)
        browser.look(page, address, "Completed", shots / "run.png")
        query = {
            "artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": ["joint-loop-report"]}}
        }
        report = lifecycle.api(cluster, "POST", "/artifacts/filter", query)[0]
        address = f"{cluster.url}/v2/artifacts/artifact/{report['id']}"
        browser.look(page, address, report["description"], shots / "report.png")
    say(f"screenshots of the form, the run and the report: {shots}")
    ours = next(
        record
        for record in open_store(os.environ["EXPANDR_STORE"]).records()
        if record["flow_run_id"] == run
    )
    local = _local_record(store, preset, ours["options"])
    equal = _compare(_steps(ours), _steps(local))
    return _show_workers(cluster, run) and equal


def _follow(cluster: Cluster, run: str, seconds: float) -> None:
    """Print the states of a run and its stages until it has ended."""
    deadline = time.monotonic() + seconds
    shown: dict[str, str] = {}
    while time.monotonic() < deadline:
        try:
            runs = _family(cluster, run)
        except httpx.HTTPError as error:
            say(f"the API does not answer: {error}")
            runs = []
        for each in runs:
            if shown.get(each["id"]) != each["state_name"]:
                shown[each["id"]] = each["state_name"]
                say(f"{each['state_name']:<12} {each['name']}")
        ended = [each for each in runs if each["id"] == run and each["end_time"]]
        if ended and ended[0]["state_type"] == "COMPLETED":
            return
        if ended and ended[0]["state_type"] in ("FAILED", "CRASHED", "CANCELLED"):
            raise ClusterError(f"the run ended as {ended[0]['state']}")
        time.sleep(POLL_SECONDS)
    raise ClusterError(f"the run has not ended after {seconds / 60:.0f} minutes")


def _family(cluster: Cluster, run: str) -> list[dict[str, Any]]:
    """Return a run and the runs it started, in starting order."""
    found = [lifecycle.api(cluster, "GET", f"/flow_runs/{run}")]
    while True:
        query = {
            "flow_runs": {"parent_flow_run_id": {"any_": [run]}},
            "sort": "EXPECTED_START_TIME_ASC",
            "offset": len(found) - 1,
        }
        page = lifecycle.api(cluster, "POST", "/flow_runs/filter", query)
        if not page:
            return found
        found += page


def _local_record(store: str, preset: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the record of the same loop run without a cluster; run it if there is none."""
    for attempt in ("look", "run"):
        for record in reversed(open_store(store).records()):
            if record["options"] == options:
                return record
        if attempt == "look":
            say(f"running the same loop without a cluster, into {store}")
            config = Path(__file__).parents[2] / "configs" / f"{preset}.yaml"
            environment = {
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("PREFECT_", "EXPANDR_"))
            }
            command = [find_program("expandr"), "run", str(config), "--store", store]
            command += ["--set", f"seed={options['seed']}"]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise ClusterError(f"the local run failed: {done.stdout}{done.stderr}")
    raise ClusterError(f"the local run left no record with the same options in {store}")


def _steps(record: dict[str, Any]) -> list[Step]:
    return [(step["title"], step["artifact"]["digest"]) for step in record["steps"]]


def _compare(ours: list[Step], local: list[Step]) -> bool:
    """Print the steps whose artifacts differ; return whether there are none."""
    for here, there in zip(ours, local, strict=False):
        if here != there:
            say(
                f"differs: {here[0]} {here[1][:12]} on the cluster, {there[0]} {there[1][:12]} locally"
            )
    equal = ours == local
    say(f"{len(ours)} artifacts, {'all' if equal else 'NOT all'} equal to those of the local run")
    return equal


def _show_workers(cluster: Cluster, run: str) -> bool:
    """List which worker ran what; return whether at least three took part."""
    workers = _workers(cluster)
    part: set[str] = set()
    for each in _family(cluster, run):
        worker = workers.get(each["id"], "?")
        part.add(worker)
        say(f"{worker:<10} {each['name']}")
    part.discard("?")
    say(f"{len(part)} workers took part: {', '.join(sorted(part))}")
    return len(part) >= 3


def _workers(cluster: Cluster) -> dict[str, str]:
    """Return the name of the worker that ran each flow run."""
    query = {"filter": {"event": {"name": ["prefect.worker.submitted-flow-run"]}}, "limit": 50}
    answer = lifecycle.api(cluster, "POST", "/events/filter", query)
    found: dict[str, str] = {}
    while True:
        for event in answer["events"]:
            name = event["resource"]["prefect.resource.name"]
            for related in event["related"]:
                if related["prefect.resource.role"] == "flow-run":
                    found[related["prefect.resource.id"].rpartition(".")[2]] = name
        following = answer["next_page"]
        if not following:
            return found
        answer = lifecycle.api(cluster, "GET", following.partition("/api")[2])


if __name__ == "__main__":
    typer.run(main)
