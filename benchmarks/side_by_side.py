"""Run the sides of a benchmark by turns, each in a process of its own, and print the ratio.

A side is a Python program that prints one JSON object as its last line: `seconds`, and whatever else it
measured. To compare with a former commit, `former_tree` checks it out beside this one; a side with that
tree as its `tree` imports the package from there.
"""

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parents[1]
FORMER = "6b5fd78"  # what "today" is in the wanted ratios


@dataclass(frozen=True)
class Side:
    """A program to run: a script, its arguments, and the tree that it imports the package from."""

    script: Path
    arguments: tuple[str, ...] = ()
    tree: Path = HERE
    python: str = sys.executable

    def run(self) -> dict[str, Any]:
        """Run it once; return what it printed last, and `peak_gb`, the most memory it had."""
        environment = os.environ | {"PYTHONPATH": str(self.tree)}
        command = [self.python, str(self.script), *self.arguments]
        with subprocess.Popen(
            command, env=environment, cwd=self.tree, stdout=subprocess.PIPE, text=True
        ) as process:
            lines = list(process.stdout or [])
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        return json.loads(lines[-1]) | {"peak_gb": usage.ru_maxrss / 1e6}


@contextlib.contextmanager
def former_tree(commit: str = FORMER) -> Iterator[Path]:
    """Check a former commit out beside this one, as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / commit
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def take_turns(sides: Mapping[str, Side], rounds: int = 2) -> dict[str, list[dict[str, Any]]]:
    """Run all sides once a round, in the opposite order every other round, and print each result."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            result = sides[name].run()
            results[name].append(result)
            print(f"{name}: {result['seconds']:.1f} s, {result['peak_gb']:.2f} GB", flush=True)
    return results


def ratios(results: Mapping[str, Sequence[Mapping[str, Any]]], ours: str) -> dict[str, float]:
    """Print how many times as fast `ours` is as each other side, by the medians; return the ratios."""
    medians = {
        name: statistics.median(each["seconds"] for each in own) for name, own in results.items()
    }
    found = {name: medians[name] / medians[ours] for name in medians if name != ours}
    print(machine())
    for name, ratio in found.items():
        print(f"{ours} is {ratio:.2f} times as fast as {name}")
    return found


def machine() -> str:
    """Describe the processor and the commit, for a line in docs/performance.md."""
    name = platform.processor() or platform.machine()
    flags = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        own = next(line for line in lines if line.startswith("flags")).split()
        flags = ", ".join(
            flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in own
        )
    commit = subprocess.check_output(
        ["git", "-C", str(HERE), "describe", "--always", "--dirty"], text=True
    ).strip()
    return f"{name} ({flags}), {psutil.cpu_count()} cores, commit {commit}"
