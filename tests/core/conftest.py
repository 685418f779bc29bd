"""An S3 server on the loopback, and a store that an earlier version recorded."""

import logging
import urllib.request
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


@pytest.fixture(scope="session")
def s3_server() -> Iterator:
    """Serve S3; each test empties it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch) -> Iterator:
    """The server with a bucket "bucket", and nothing else.

    s3fs finds the server by AWS_ENDPOINT_URL, which botocore reads; FSSPEC_S3_ENDPOINT_URL, which
    fsspec reads into its configuration at import, works only if it is set before Python starts.
    """
    import boto3

    from expandr_core.store.s3 import S3

    host, port = s3_server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    S3.clear_instance_cache()  # instances remember the server of another test
    client = boto3.client("s3")
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
    client.create_bucket(Bucket="bucket")
    s3_server.client = client
    yield s3_server
    S3.clear_instance_cache()


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
