"""Time the tiny loop on two pools of one worker each, with branches overlapping and one by one.

    python -m benchmarks.branches

All loops run here, each in a store of its own, beside the same two workers: one by one, overlapping,
overlapping, one by one, so that a machine that gets busier or quieter favours neither. Their artifacts
must be equal, step by step.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

POOLS = ("gpu-infer", "gpu-train")
ORDER = ("one by one", "overlap", "overlap", "one by one")
WANTED = 0.75  # of the time one by one


def start_workers(folder: Path) -> list[subprocess.Popen]:
    """Deploy the flow `stage` to both pools and start a worker of each; wait until both are online."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    from deployments.apply import apply_deployment
    from deployments.plan import Deployment
    from deployments.pools import apply_pool
    from flows.stage import stage
    from tasks.placement import online_workers

    workers = []
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            apply_pool(client, pool, "", "process", False)
            apply_deployment(client, Deployment(stage, pool, pool, "", {}), False)
            home = folder / pool
            home.mkdir()
            environment = os.environ | {
                "PREFECT_API_URL": str(PREFECT_API_URL.value()),
                "PREFECT_HOME": str(home),
                "PREFECT_WORKER_QUERY_SECONDS": "1",
                "EXPANDR_SCRATCH": str(home / "scratch"),
            }
            command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool]
            with (home / "log").open("wb") as log:
                workers.append(
                    subprocess.Popen(
                        [*command, "--limit", "1"],
                        env=environment,
                        cwd=home,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        while not all(online_workers(client, pool) for pool in POOLS):
            time.sleep(0.5)
    return workers


def stop(worker: subprocess.Popen) -> None:
    """End a worker and what it runs."""
    for process in psutil.Process(worker.pid).children(recursive=True):
        process.send_signal(signal.SIGKILL)
    worker.kill()
    worker.wait()


def run(store: Path, branches: str) -> tuple[float, dict[str, str]]:
    """Run the tiny loop; return its seconds, and the digest of each step."""
    from flows.joint_loop import joint_loop
    from tasks.placement import Placement

    infer, train = POOLS  # the embedder's stages go where fewer others are
    places = {"generate": train, "train": train, "embed": infer, "runs_at_once": 1}
    placement = Placement.model_validate({**places, "branches": branches})
    started = time.monotonic()
    record = joint_loop("tiny", placement=placement, store=str(store))
    seconds = time.monotonic() - started
    return seconds, {f"{step.id}": step.artifact.digest for step in record.steps}


def main() -> int:
    """Run both, and compare."""
    argparse.ArgumentParser(description=str(__doc__).splitlines()[0]).parse_args()
    from expandr_cli.temporary_server import prefect_server

    with tempfile.TemporaryDirectory(prefix="expandr-branches-") as name, prefect_server(print):
        folder = Path(name)
        workers = start_workers(folder)
        try:
            runs = [run(folder / f"{number}", kind) for number, kind in enumerate(ORDER)]
        finally:
            for worker in workers:
                stop(worker)
    seconds = {
        kind: [took for each, (took, _) in zip(ORDER, runs, strict=True) if each == kind]
        for kind in ORDER
    }
    for kind, took in seconds.items():
        print(f"{kind}: {' and '.join(f'{each:.0f}' for each in took)} s")
    ratio = sum(seconds["overlap"]) / sum(seconds["one by one"])
    steps = [list(made.items()) for _, made in runs]
    equal = all(each == steps[0] for each in steps)
    print(f"{ratio:.2f} of the time")
    print(f"{len(steps[0])} steps, {'equal' if equal else 'DIFFERENT'} artifacts in the same order")
    return 0 if equal and ratio <= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
