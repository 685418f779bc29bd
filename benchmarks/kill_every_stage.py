"""Kill the joint loop once in every stage, resume it with the same command, and compare the results.

    python benchmarks/kill_every_stage.py CONFIG.yaml [--set OPTION=VALUE ...]

Runs the loop uninterrupted in one store. In another store it kills the flow's process group with
SIGKILL whenever a stage is seen running for the first time, and restarts it. Prints a table of the
kills, checks that no finished artifact was made again, and exits with 0 only if all digests are
equal.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from expandr_core.store.store import Store


def start(config: str, changes: list[str], store: Path) -> subprocess.Popen:
    """Start the loop in a process group of its own."""
    command = [sys.executable, "-m", "expandr_cli.main", "run", config, "--store", str(store)]
    for change in changes:
        command += ["--set", change]
    log = store.with_suffix(".log").open("ab")
    environment = os.environ | {"PREFECT_HOME": str(store.with_suffix(".prefect"))}
    return subprocess.Popen(
        command, stdout=log, stderr=log, start_new_session=True, env=environment
    )


def digests(store: Path) -> dict[str, str]:
    """Return the digest of each artifact by key, without the shards' parents' times."""
    return {
        path.parent.name: json.loads(path.read_text())["digest"]
        for path in store.glob("artifacts/*/manifest.json")
    }


def made_at(store: Path) -> dict[str, float]:
    """Return when each finished artifact was written."""
    return {
        path.parent.name: path.stat().st_mtime for path in store.glob("artifacts/*/manifest.json")
    }


def kill_at_next_stage(loop: subprocess.Popen, store: Path, killed: set[str]) -> str | None:
    """Wait until a stage that was not killed before is at work, and kill; None if the loop ended."""
    while loop.poll() is None:
        for work in store.glob(".scratch/work/*"):
            stage = work.name.rpartition("-")[0]
            if stage not in killed and (work / "out").exists():
                time.sleep(0.05 if stage in ("pairs", "compare", "prepare") else 0.5)
                os.killpg(loop.pid, signal.SIGKILL)
                loop.wait()
                return stage
        time.sleep(0.005)
    return None


def main() -> int:
    """Run both, and compare."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--folder", default=None)
    arguments = parser.parse_args()
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="expandr-kill-"))
    whole, broken = folder / "whole", folder / "broken"
    if start(arguments.config, arguments.changes, whole).wait():
        print(whole.with_suffix(".log").read_text()[-2000:])
        return 1
    killed: set[str] = set()
    redone: list[str] = []
    finished: dict[str, float] = {}
    while True:
        loop = start(arguments.config, arguments.changes, broken)
        stage = kill_at_next_stage(loop, broken, killed)
        now = made_at(broken)
        redone += [key for key, when in finished.items() if now.get(key) != when]
        finished = now
        if stage is None:
            break
        killed.add(stage)
        print(f"killed in {stage:<20}{len(finished):>4} artifacts finished", flush=True)
    equal = digests(whole) == digests(broken)
    print(f"{len(killed)} kills; finished artifacts made again: {redone or 'none'}")
    print(
        f"exit status of the last run: {loop.returncode}; "
        f"digests {'equal' if equal else 'DIFFER'} ({len(Store(str(whole)).keys())} artifacts); {folder}"
    )
    return 0 if equal and not redone and loop.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
