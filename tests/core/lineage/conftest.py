"""The store that an earlier version recorded, unpacked once."""

import pytest
from recorded_store import RUN, unpacked

from expandr_core.store.run_records import RecordedRun, find_recorded
from expandr_core.store.store import Store


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> Store:
    """The store; do not write into it."""
    return Store(str(unpacked(tmp_path_factory.mktemp("recorded"))))


@pytest.fixture
def run(recorded) -> RecordedRun:
    """Its one run."""
    found = find_recorded(recorded.records(), RUN)
    assert found
    return found
