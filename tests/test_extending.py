"""Follow every recipe of docs/extending.md in a copy of the packages, and run its tests there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text()
COPIED = ("expandr_core", "expandr_cli", "tasks", "flows", "deployments", "configs", "tests")
RECIPES = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
FILES = dict(re.findall(r"^\| \[([^\]]+)\]\(#[^)]+\) \| (\d+) \|", PAGE, re.M))
BLOCK = re.compile(r"^(New|In) `([^`]+)`:\n\n```\w+\n(.*?)^```$", re.M | re.S)


def patch(text: str, diff: str) -> str:
    """Apply a diff without line numbers, whose hunks are separated by lines with @@.

    >>> patch("a\\nb\\nc\\n", " b\\n-c\\n+d\\n")
    'a\\nb\\nd\\n'
    """
    for hunk in re.split(r"^@@.*\n", diff, flags=re.M):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
        after = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
        assert text.count(before) == 1, f"{text.count(before)} times in the file:\n{before}"
        text = text.replace(before, after)
    return text


def follow(recipe: str, copy: Path) -> tuple[set[str], set[str]]:
    """Write the files of a recipe; return which they are, and the tests that it adds."""
    touched, tests = set(), set()
    for verb, path, block in BLOCK.findall(recipe):
        target = copy / path
        assert target.exists() == (verb == "In"), path
        target.parent.mkdir(exist_ok=True)
        target.write_text(block if verb == "New" else patch(target.read_text(), block))
        if path.startswith("tests/"):
            tests |= {f"{path}::{name}" for name in re.findall(r"^\+?def (test_\w+)", block, re.M)}
        else:
            touched.add(path)
    return touched, tests


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_works_as_written_and_touches_as_many_files_as_the_table_says(title, tmp_path):
    for package in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    touched, tests = follow(RECIPES[title], tmp_path)
    assert len(touched) == int(FILES[title])
    assert tests
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sorted(tests)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_table_lists_every_recipe():
    assert list(FILES) == list(RECIPES)
