"""Stores on S3, and one that an earlier version recorded."""

from collections.abc import Iterator

import pytest
from recorded_store import RUN, unpacked
from shaky_proxy import ShakyProxy

from expandr_core.store.run_records import RecordedRun, find_recorded
from expandr_core.store.store import Store


@pytest.fixture(scope="session")
def recorded(tmp_path_factory) -> Store:
    """The store, unpacked once; do not write into it."""
    return Store(str(unpacked(tmp_path_factory.mktemp("recorded"))))


@pytest.fixture
def run(recorded) -> RecordedRun:
    """Its one run."""
    found = find_recorded(recorded.records(), RUN)
    assert found
    return found


@pytest.fixture
def proxy(s3, monkeypatch) -> Iterator[ShakyProxy]:
    """A proxy before that server, which stores opened from now on use."""
    host, port = s3.get_host_and_port()
    proxy = ShakyProxy(f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    yield proxy
    proxy.close()


@pytest.fixture
def remote(s3, tmp_path) -> Store:
    return Store("s3://bucket/some/prefix", tmp_path / "scratch")
