"""One run of the tiny loop, shared by all tests that look at a finished run."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from finished_loop import Finished


@pytest.fixture(scope="session")
def first(prefect_server, tmp_path_factory) -> "Finished":
    """The first run, in a store that no test may change."""
    from finished_loop import finished

    return finished(tmp_path_factory.mktemp("first") / "store")


@pytest.fixture
def store(first, tmp_path) -> Path:
    """A copy of the first run's store."""
    return shutil.copytree(first.record.store, tmp_path / "store")
