"""Time the demo's loop from scratch, and again when the store has everything, against a former commit.

    python -m benchmarks.demo_loop [--small] [--rounds 2]

Both sides run `expandr demo` in an empty store, then again in the same one, with a Prefect server and a
database of their own; the sides take turns, in both orders. What counts is the loop, from when its flow
starts until its record is written, so neither imports of the command nor the start of the server. From
scratch it must take at most 0.75 of the former time, and again at most 2.5 % of it. `--small` runs the
preset tiny once a side, in two minutes, and judges nothing: there is too little to compute.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

WANTED = {"from scratch": 0.75, "again": 0.025}
COMMANDS = {"former": "flows.cli", "now": "expandr_cli.main"}


def measure(command: list[str]) -> None:
    """Run the loop twice in a new store, and print how long it took."""
    with tempfile.TemporaryDirectory(prefix="expandr-demo-") as folder:
        store = Path(folder, "store")
        environment = os.environ | {"PREFECT_HOME": f"{folder}/prefect"}
        log = Path(folder, "log")
        for _ in range(2):
            with log.open("ab") as output:
                run = [sys.executable, "-m", *command, "--store", str(store)]
                status = subprocess.run(run, env=environment, stdout=output, stderr=output)
            if status.returncode:
                sys.exit(log.read_text()[-3000:])
        runs = [json.loads(path.read_text()) for path in sorted(store.glob("runs/*.json"))]
    first, again = (
        (datetime.fromisoformat(run["finished"]) - datetime.fromisoformat(run["started"]))
        for run in runs
    )
    print(json.dumps({"seconds": first.total_seconds(), "again": again.total_seconds()}))


def main() -> int:
    """Take turns, print both ratios, and judge."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return 0
    from benchmarks.side_by_side import FORMER, HERE, Side, former_tree, machine, take_turns

    what = ["run", "configs/tiny.yaml"] if arguments.small else ["demo"]
    with former_tree() as former:
        sides = {
            name: Side(Path(__file__), ("--measure", COMMANDS[name], *what), tree)
            for name, tree in (("former", former), ("now", HERE))
        }
        results = take_turns(sides, 1 if arguments.small else arguments.rounds)
    print(machine())
    before = statistics.median(each["seconds"] for each in results["former"])
    good = True
    for name, key in (("from scratch", "seconds"), ("again", "again")):
        now = statistics.median(each[key] for each in results["now"])
        good &= now / before <= WANTED[name]
        print(
            f"{name}: {now:.1f} s, {now / before:.3f} of the {before:.1f} s from scratch at {FORMER} "
            f"(wanted: {WANTED[name]})"
        )
    return 0 if good or arguments.small else 1


if __name__ == "__main__":
    sys.exit(main())
