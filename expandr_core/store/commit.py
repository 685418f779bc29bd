"""The commit of this code: of its checkout, or, in a wheel, as the build wrote it down.

Nothing but the standard library, since setup.py runs this file too.
"""

import contextlib
import functools
import subprocess
from pathlib import Path

WRITTEN = Path(__file__).with_name("commit.txt")  # by setup.py


@functools.cache
def code_commit() -> str:
    """Return the commit of the running code, with "-dirty" if it was changed; empty if unknown."""
    found = commit_of(Path(__file__))
    if not found and WRITTEN.is_file():
        found = WRITTEN.read_text(encoding="utf-8").strip()
    return found


def commit_of(file: Path) -> str:
    """Return the commit of the git checkout that tracks a file; empty if none does.

    An installed file may lie below somebody else's checkout, whose commit would say nothing.
    """

    def git(*command: str) -> str:
        run = subprocess.run(
            ["git", *command], cwd=file.parent, capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", file.name)
        return git("describe", "--always", "--dirty", "--abbrev=12")
    return ""
