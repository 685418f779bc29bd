"""What tests of several modules share."""

import gc
import logging
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from finished_loop import Finished

for _name, _value in {
    "DO_NOT_TRACK": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
}.items():
    os.environ.setdefault(_name, _value)


settings.register_profile(
    "expandr",
    deadline=None,  # a busy machine may stop for longer
    derandomize=True,  # the same examples every time
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("expandr")
LONGEST = ("cluster", "test_vllm_loop", "test_placement", "test_joint_loop", "flows", "training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that all workers end at about the same time."""

    def place(item: pytest.Item) -> int:
        names = (item.path.stem, item.path.parent.name)
        return next((n for n, name in enumerate(LONGEST) if name in names), len(LONGEST))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Keep the garbage collector out of the modules that all tests import."""
    gc.freeze()


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory) -> Path:
    """The folder of a tiny language model with random weights; do not write into it."""
    from tiny_models import save_llm

    return save_llm(tmp_path_factory.mktemp("llm") / "model")


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server with an empty database of its own, for all flows of the tests.

    It keeps no events, as nobody reads them here; a cluster's server does.
    """
    from ports import kept_port
    from prefect.testing import utilities

    from expandr_cli.temporary_server import RECORDING

    with kept_port() as port, pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "_find_available_port", lambda: port)  # which could be lost again
        for service in ("EVENT_PERSISTER", "TRIGGERS"):
            patch.setenv(f"PREFECT_SERVER_SERVICES_{service}_ENABLED", "false")
        for name, value in RECORDING.items():
            patch.setenv(name, value)
        with utilities.prefect_test_harness(server_startup_timeout=300):
            patch.undo()  # other servers keep them
            yield


@pytest.fixture(scope="session")
def first(prefect_server, tmp_path_factory) -> "Finished":
    """A run of the tiny loop, made once for all workers, in a store that no test may change."""
    from finished_loop import Finished, finished
    from pydantic import TypeAdapter

    from expandr_core.store.filesystems import flock

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    kept, run = shared / "first.json", TypeAdapter(Finished)
    with flock(shared / "first.lock"):
        if not kept.exists():
            kept.write_bytes(run.dump_json(finished(shared / "first")))
    return run.validate_json(kept.read_bytes())


@pytest.fixture
def browser() -> Iterator:
    """Headless Chromium; of one test, as its event loop would be in the way of others."""
    sync_api = pytest.importorskip("playwright.sync_api")
    from infra.local.browser import FLAGS

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


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
