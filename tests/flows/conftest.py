"""The store of the finished run, for tests that change it."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def store(first, tmp_path) -> Path:
    """A copy of the first run's store."""
    return shutil.copytree(first.record.store, tmp_path / "store")
