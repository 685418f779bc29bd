"""Which options are read, as pyrefly sees it: on a value of their class, whatever else has their name.

In a copy of the code every option is a deprecated property, and pyrefly reports where one is used. A
read of a value whose class it cannot infer is missed, never invented.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("expandr_core", "tasks", "flows", "expandr_cli", "deployments")


class _Watched(ast.NodeTransformer):
    """Turn the fields of option classes into deprecated properties."""

    def __init__(self, classes: set[str], planted: dict[str, str]):
        self.classes, self.planted = classes, planted

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        if node.name in self.classes:
            body = [*node.body, *ast.parse(self.planted.get(node.name, "")).body]
            node.body = [_watched(node.name, each) for each in body if not _only_checks(each)]
        return node


def _watched(owner: str, member: ast.stmt) -> ast.stmt:
    if not isinstance(member, ast.AnnAssign):
        return member
    name, kind = ast.unparse(member.target), ast.unparse(member.annotation)
    lines = f"@property\n@deprecated('{owner}.{name}')\ndef {name}(self) -> {kind}: ..."
    return ast.parse(lines).body[0]


def _only_checks(member: ast.stmt) -> bool:
    """Tell whether a method is a validator, whose reading of an option is no use of it."""
    return any("validator" in ast.unparse(each) for each in getattr(member, "decorator_list", []))


def options_read(classes: set[str], copy: Path, planted: dict[str, str]) -> set[str]:
    """Return the options, as Class.name, that the code reads.

    Args:
        classes: the classes of options.
        copy: a new folder for a copy of the code.
        planted: lines that are added to classes in the copy.
    """
    for package in PACKAGES:
        shutil.copytree(ROOT / package, copy / package)
    for path in copy.rglob("*.py"):
        tree = _Watched(classes, planted).visit(ast.parse(path.read_text()))
        if any(name in classes for name in re.findall(r"class (\w+)", path.read_text())):
            path.write_text(f"from typing_extensions import deprecated\n{ast.unparse(tree)}\n")
    (copy / "pyrefly.toml").write_text('python-version = "3.11"')
    command = [sys.executable, "-m", "pyrefly", "check", "--only", "deprecated"]
    command += ["--python-interpreter-path", sys.executable, "--output-format", "json"]
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=True)
    return {
        match.group(1)
        for each in json.loads(run.stdout)["errors"]
        if (match := re.search(r"^\s+(\w+\.\w+)$", each["description"], re.MULTILINE))
    }
