"""Write the commit into wheels and source archives; everything else is in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

STORE = Path("expandr_core", "store")
COMMIT = runpy.run_path(str(STORE / "commit.py"))["code_commit"]()


def write_commit(root: str) -> None:
    """Write it where `expandr_core.store.commit` looks for it."""
    if COMMIT:
        Path(root, STORE, "commit.txt").write_text(COMMIT, encoding="utf-8")


class BuildWithCommit(build_py):
    """Build the packages; an editable installation reads its checkout instead."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            write_commit(self.build_lib)


class ArchiveWithCommit(sdist):
    """Make a source archive."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Make its folder."""
        super().make_release_tree(base_dir, files)
        write_commit(base_dir)


setup(cmdclass={"build_py": BuildWithCommit, "sdist": ArchiveWithCommit})
