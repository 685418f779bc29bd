"""S3 that fails for a while: a short outage passes, and a long one is an error, never "not there"."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shaky_proxy import KINDS, ShakyProxy
from store_keys import full
from store_world import KEY, put, with_parts

from expandr_core.store import s3 as s3_module
from expandr_core.store.s3 import S3
from expandr_core.store.store import Store

SHORT = 0.4  # seconds
LOST = [kind for kind in KINDS if kind != "cut short"]  # no request succeeds


@pytest.fixture
def proxy(proxy, monkeypatch) -> ShakyProxy:
    monkeypatch.setattr(s3_module, "READ_TIMEOUT", 0.3)
    monkeypatch.setattr(s3_module, "RETRY_FOR", 60)
    monkeypatch.setattr(s3_module, "_LONGEST_PAUSE", 0.2)
    return proxy


@pytest.fixture
def remote(proxy, tmp_path) -> Store:
    return Store("s3://bucket/some/prefix", tmp_path / "scratch")


def uses(store: Store, folder: Path) -> Iterator[tuple[str, Callable[[], Any], Any]]:
    """Yield what one does with a store, and what comes of it."""
    made = with_parts(store)
    store.write_record("1", {"name": "1"})

    def hold() -> bool:
        with store.lock(full("expand-3")) as work:
            return work.is_dir()

    yield "find an artifact", lambda: store.lookup(KEY), made
    yield "find none", lambda: store.lookup(full("expand-2")), None
    yield "commit", lambda: put(store, KEY, {"whole": "w"}, store.shards(made)), made
    yield "download", lambda: (store.local(made) / "whole").read_text(), "w"
    yield "list", lambda: store.keys("expand-"), [KEY]
    yield "read records", lambda: store.records(), [{"name": "1"}]
    yield "lock", hold, True
    yield "open", lambda: Store("s3://bucket/other", folder).keys(), []


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_outage_passes_unnoticed(remote, proxy, tmp_path, kind):
    for name, use, result in uses(remote, tmp_path / "other"):
        before = proxy.faults
        with proxy.failing(kind, SHORT):
            assert use() == result, name
        assert proxy.faults > before or kind == "refused"


@pytest.mark.parametrize("kind", LOST)
def test_a_long_outage_is_an_error_and_never_an_absence(remote, proxy, tmp_path, monkeypatch, kind):
    for name, use, _ in list(uses(remote, tmp_path / "other")):
        monkeypatch.setattr(s3_module, "RETRY_FOR", 0.3)
        with proxy.failing(kind), pytest.raises(OSError, match="S3 has failed for") as failure:
            use()
        assert not isinstance(failure.value, FileNotFoundError), name
        monkeypatch.setattr(s3_module, "RETRY_FOR", 60)


def test_a_large_file_outlasts_an_outage_in_its_middle(remote, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_module, "_PART", 5 << 20)
    folder = tmp_path / "out"
    folder.mkdir()
    content = bytes(range(256)) * (1 << 16) + b"the end"  # 16 MiB: four parts
    (folder / "large").write_bytes(content)
    send = proxy._handle
    monkeypatch.setattr(
        proxy,
        "_handle",
        lambda request: (
            (setattr(proxy, "fault", LOST[proxy.requests % 4]), send(request))
            if proxy.requests % 3 == 1
            else (setattr(proxy, "fault", ""), send(request))
        ),
    )
    made = remote.commit(KEY, folder, [], {"counts": {}})
    assert (remote.local(made) / "large").read_bytes() == content
    assert proxy.faults > 4


def test_many_requests_side_by_side_outlast_an_outage(remote, proxy):
    parts = [put(remote, f"expand_shard-{n}", {"rows": f"{n}"}) for n in range(60)]
    made = put(remote, KEY, {"whole": "w"}, parts)
    with proxy.failing("503", 2):
        assert remote.lookup(KEY) == made


def test_no_secret_is_in_what_a_failure_says(proxy, tmp_path, monkeypatch, caplog):
    for name, value in (("ACCESS_KEY_ID", "CANARY-ID"), ("SECRET_ACCESS_KEY", "CANARY-SECRET")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(s3_module, "RETRY_FOR", 0.5)
    S3.clear_instance_cache()
    with caplog.at_level(logging.INFO, "expandr_core"):
        store = Store("s3://bucket/prefix", tmp_path)
        with proxy.failing("refused"), pytest.raises(OSError) as failure:
            store.lookup(KEY)
    said = [caplog.text]
    error: BaseException | None = failure.value
    while error:
        said.append(repr(error))
        error = error.__cause__ or error.__context__
    assert len(said) > 2 and "CANARY" not in "".join(said)
