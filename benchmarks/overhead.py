"""Measure what orchestration costs: the joint loop under Prefect against a plain script.

    python -m benchmarks.overhead [CONFIG.yaml]

Runs `expandr run CONFIG` in an empty store, then replays its steps one by one in another empty store,
from a script without Prefect that uses the same programs, in child processes wherever the loop does.
Prints both times and their ratio. Exits with 0 only if all digests are equal and the loop took at
most 3 % plus 30 s longer.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import expandr_cli.terminal  # noqa: F401  the environment of the command line, for both
from expandr_core.runtime.child import needs_child, run_in_child
from expandr_core.runtime.job import no_progress
from expandr_core.runtime.runner import make_spec, module_of, run_stage
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.store import Store


def replay(steps: list[StageSpec], store: Store) -> list[Artifact]:
    """Run stages one after the other, as a script would."""
    made = []
    for spec in steps:
        found = store.lookup(spec.key)
        run = run_in_child if needs_child(spec) else run_stage
        made.append(found or run(spec, store, no_progress))
    return made


def spec_of(manifest: dict) -> StageSpec:
    """Read back what an artifact was made of."""
    return make_spec(
        manifest["stage"],
        module_of(manifest["stage"]).OPTIONS(**manifest["options"]),
        {role: Artifact(**artifact) for role, artifact in manifest["inputs"].items()},
        seed=manifest["seed"],
        sources=manifest["sources"],
        **manifest["runtime"],
    )


def main() -> int:
    """Run both, and compare."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("config", nargs="?", default="configs/demo.yaml")
    parser.add_argument("--replay", nargs=2, metavar="STORE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replay:
        loop, plain = map(Store, arguments.replay)
        steps = [Artifact(**step["artifact"]) for step in loop.records()[-1]["steps"]]
        made = replay([spec_of(loop.manifest(step.key)) for step in steps], plain)
        return 0 if [artifact.digest for artifact in made] == [step.digest for step in steps] else 1

    folder = Path(tempfile.mkdtemp(prefix="expandr-overhead-"))
    environment = os.environ | {"PREFECT_HOME": str(folder / "prefect")}
    stores = [str(folder / "loop"), str(folder / "plain")]
    loop = ["-m", "expandr_cli.main", "run", arguments.config, "--store", stores[0]]
    commands = {"prefect": loop, "script": ["-m", "benchmarks.overhead", "--replay", *stores]}
    seconds = {}
    for name, command in commands.items():
        started = time.monotonic()
        log = folder / f"{name}.log"
        with log.open("wb") as output:
            status = subprocess.run(
                [sys.executable, *command], env=environment, stdout=output, stderr=output
            ).returncode
        seconds[name] = time.monotonic() - started
        print(f"{name:<8}{seconds[name]:8.1f} s   exit status {status}   {log}", flush=True)
        if status:
            return 1
    allowed = seconds["script"] * 1.03 + 30
    ratio = seconds["prefect"] / seconds["script"]
    print(f"ratio   {ratio:8.3f}     allowed: {allowed:.1f} s; digests equal")
    return 0 if seconds["prefect"] <= allowed else 1


if __name__ == "__main__":
    sys.exit(main())
