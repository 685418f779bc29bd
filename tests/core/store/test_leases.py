"""Leases: one of several machines makes an artifact, and a dead one hangs nobody."""

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_world import KEY
from waiting import wait_until

from expandr_core.store import leases
from expandr_core.store.store import Store

URL = "s3://bucket/some/prefix"
LEASE = {"Bucket": "bucket", "Key": f"some/prefix/locks/{KEY}"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (
        ("REFRESH", 0.3), ("STALE", 3), ("FIRST_POLL", 0.05), ("LONGEST_POLL", 0.1)
    ):  # fmt: skip
        monkeypatch.setattr(leases, name, seconds)


def machine(tmp_path: Path, name: str) -> Store:
    """A store with a scratch folder of its own, as on another machine."""
    return Store(URL, tmp_path / name)


HOLDER = """
import sys, time
from expandr_core.store import leases
from expandr_core.store.store import Store
leases.REFRESH = 0.3
with Store(sys.argv[1], sys.argv[2]).lock("KEY"):
    print("got it", flush=True)
    time.sleep(600)
""".replace("KEY", KEY)


def holder(tmp_path: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLDER, URL, str(tmp_path / "holder")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "got it\n"
    return process


@pytest.fixture
def client(s3):
    return s3.client


def names(client) -> list[str]:
    return [each["Key"] for each in client.list_objects_v2(Bucket="bucket").get("Contents", [])]


def test_a_lease_is_there_while_it_is_held_and_gone_afterwards(client, tmp_path):
    with machine(tmp_path, "a").lock(KEY):
        assert names(client) == [LEASE["Key"]]
    assert names(client) == []


def test_another_machine_waits_as_long_as_the_holder_lives_and_follows_when_it_is_killed(
    client, tmp_path, caplog
):
    caplog.set_level("INFO", "expandr_core")
    with holder(tmp_path) as process:
        taken = threading.Event()

        def take() -> None:
            with machine(tmp_path, "b").lock(KEY):
                taken.set()

        thread = threading.Thread(target=take)
        thread.start()
        assert not taken.wait(1.5 * leases.STALE)
        process.send_signal(signal.SIGKILL)
        assert taken.wait(300)
        thread.join()
    waits = [each for each in caplog.messages if "waiting" in each]
    assert len(waits) == 1 and f"process {process.pid} on " in waits[0] and KEY in waits[0]
    assert "no sign of life" in caplog.text
    assert names(client) == []


def test_on_the_machine_of_a_killed_holder_nobody_waits(client, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "STALE", 600)
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    assert names(client) == [LEASE["Key"]]
    with machine(tmp_path, "holder").lock(KEY):
        pass
    assert names(client) == []


def test_of_many_machines_one_holds_the_lease_at_a_time(client, tmp_path):
    inside, most = 0, 0

    def take(number: int) -> None:
        nonlocal inside, most
        with machine(tmp_path, str(number)).lock(KEY):
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, range(8)))
    assert most == 1
    assert names(client) == []


def test_of_many_who_wait_for_a_dead_one_one_takes_over_at_a_time(client, tmp_path):
    dead = {"holder": "dead", "host": "gone", "process": 1, "sign": 1}
    client.put_object(**LEASE, Body=json.dumps(dead))
    test_of_many_machines_one_holds_the_lease_at_a_time(client, tmp_path)


def test_hundreds_of_leases_need_one_thread(client, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "REFRESH", 60)  # no thread ends meanwhile

    def refreshers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "leases"}

    store, before, most = machine(tmp_path, "a"), refreshers(), 0
    for number in range(30):
        with store.lock(f"expand_shard-{number}"), store.lock(f"reward_shard-{number}"):
            most = max(most, len(refreshers() - before))
    assert most == 1


def test_a_holder_whose_lease_was_taken_goes_on_and_leaves_it_alone(client, tmp_path, caplog):
    store, other = machine(tmp_path, "a"), {"holder": "b", "host": "h", "process": 7}
    with store.lock(KEY):
        with store.leases._lock:  # not while the holder writes: the server keeps no writers apart
            client.put_object(**LEASE, Body=json.dumps(other))
        wait_until(lambda: "taken over by process 7 on h" in caplog.text)
    assert names(client) == [LEASE["Key"]]


def test_an_outage_does_not_count_against_the_holder(proxy, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "expandr_core")
    monkeypatch.setattr("expandr_core.store.s3._LONGEST_PAUSE", 0.2)
    holding, waiting = machine(tmp_path, "a"), machine(tmp_path, "b")
    taken = threading.Event()

    def take() -> None:
        with waiting.lock(KEY):
            taken.set()

    with holding.lock(KEY):
        thread = threading.Thread(target=take)
        thread.start()
        wait_until(lambda: "waiting" in caplog.text)
        with proxy.failing("503", 1.5 * leases.STALE):
            assert not taken.wait(2.5 * leases.STALE)
    assert taken.wait(300)
    thread.join()
    assert "no sign of life" not in caplog.text


def test_an_outage_ends_no_work(proxy, client, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("expandr_core.store.s3.RETRY_FOR", 0.1)
    with machine(tmp_path, "a").lock(KEY):
        with proxy.failing("503"):
            wait_until(lambda: "could not renew" in caplog.text)
        sign = client.head_object(**LEASE)["ETag"]
        wait_until(lambda: client.head_object(**LEASE)["ETag"] != sign)
        proxy.fault = "503"
    proxy.fault = ""
    assert "so it will expire" in caplog.text


# Servers without conditional writes


def test_a_server_is_asked_once_whether_it_has_conditional_writes(proxy, client, tmp_path):
    store = machine(tmp_path, "a")
    with store.lock(KEY):
        assert names(client) == [LEASE["Key"]]
    before = proxy.requests
    assert store.leases.lacking() == [] and proxy.requests == before
    assert names(client) == []


@pytest.mark.parametrize(
    ("without", "lacking"),
    [
        ({"If-Match": True}, ["If-Match"]),  # Swift's s3api as it comes
        ({"If-Match": False}, ["If-Match"]),
        ({"If-None-Match": True}, ["If-None-Match: *"]),
        ({"If-Match": False, "If-None-Match": False}, ["If-None-Match: *", "If-Match"]),
    ],
)
def test_without_conditional_writes_nobody_waits_and_nothing_is_left_behind(
    proxy, client, tmp_path, caplog, without, lacking
):
    proxy.without = without
    one, other = machine(tmp_path, "a"), machine(tmp_path, "b")
    with one.lock(KEY), other.lock(KEY):  # a lease would have one wait for the other
        assert names(client) == []
    with one.lock("expand-0123456789abcdef0123"):
        pass
    assert one.leases.lacking() == lacking
    told = [each.message for each in caplog.records if "there are no leases" in each.message]
    assert len(told) == 2 and all(name in told[0] for name in lacking)


def test_deploying_tells_what_the_server_lacks(proxy):
    from deployments.deploy import store_note

    assert store_note(URL) == store_note("/a/folder") == ""
    proxy.without = {"If-Match": False}
    assert "does not honour If-Match" in store_note(URL)
