"""Where infra/ is, and how its tests run programs that may be absent."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

INFRA = Path(__file__).parents[2] / "infra"


def program(name: str) -> str:
    """Return the path of a program, also if only Python's environment or root has it, or skip."""
    beside = f"{Path(sys.executable).parent}:/usr/sbin"
    path = shutil.which(name) or shutil.which(name, path=beside)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(name: str, *arguments: str | Path, **options) -> str:
    """Run a program; fail the test with what it wrote if it does not end with 0."""
    result = subprocess.run(
        [program(name), *arguments], capture_output=True, text=True, timeout=300, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr
