"""Claims: the runs of a stage share its shards, and none waits for a dead one."""

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from store_keys import full
from store_world import put

from expandr_core.store import claims as module
from expandr_core.store import leases
from expandr_core.store.artifacts import Artifact
from expandr_core.store.claims import Claims, drop_marks, find_marked
from expandr_core.store.garbage import find_garbage, remove_garbage
from expandr_core.store.store import Store

WORK = full("expand-1")
SHARDS = 12


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("REFRESH", 0.3), ("STALE", 3), ("SETTLE", 0.2)):
        monkeypatch.setattr(leases, name, seconds)
    for name, seconds in (("_FIRST_POLL", 0.05), ("_LONGEST_POLL", 0.1)):
        monkeypatch.setattr(module, name, seconds)


@pytest.fixture(params=["folder", "s3", "s3 without conditions"])
def url(request, tmp_path) -> str:
    """A store of each kind; its machines differ in their scratch folders."""
    if request.param == "folder":
        return str(tmp_path / "store")
    if request.param != "s3":
        request.getfixturevalue("proxy").without = {"If-Match": False, "If-None-Match": False}
    request.getfixturevalue("s3")
    return "s3://bucket/some/prefix"


class Machine:
    """A machine with runs of a stage that notes the shards it makes."""

    def __init__(self, url: str, scratch: Path):
        self.store = Store(url, scratch)
        self.made: list[int] = []

    def claims(self) -> Claims:
        return Claims(self.store, WORK, SHARDS)

    def make(self, number: int, text: str = "") -> Artifact:
        return put(self.store, f"expand_shard-{number}", {"rows": text or f"{number}"})

    def share(self, present: range = range(SHARDS)) -> None:
        """Run the stage; of the numbers it could have, only those present have a shard."""
        with self.claims() as claims:
            while claims.one_is_free():
                for number in present:
                    if claims.take(number):
                        self.made.append(number)
                        claims.made(number, self.make(number))
                claims.end_pass()


def machines(url: str, tmp_path: Path, count: int) -> list[Machine]:
    return [Machine(url, tmp_path / f"scratch-{number}") for number in range(count)]


def marked(machine: Machine) -> list[str]:
    return sorted(find_marked(machine.store, WORK, ""))


def test_every_shard_is_made_and_none_twice(url, tmp_path, request):
    shared = machines(url, tmp_path, 4)
    threads = [threading.Thread(target=each.share) for each in shared]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    made = Counter(number for each in shared for number in each.made)
    assert set(made) == set(range(SHARDS))
    if "without" not in request.node.name:  # there a slow request could let two make one
        assert set(made.values()) == {1}
    assert marked(shared[0]) == sorted(full(f"expand_shard-{number}") for number in range(SHARDS))


def test_who_comes_late_makes_what_nobody_makes_and_waits_for_the_rest(url, tmp_path):
    early, late = machines(url, tmp_path, 2)
    with early.claims() as claims:
        assert claims.one_is_free()
        assert [number for number in range(SHARDS) if number < 2 and claims.take(number)] == [0, 1]
        claims.made(0, early.make(0))
        thread = threading.Thread(target=late.share)
        thread.start()
        while len(late.made) < SHARDS - 2:
            assert thread.is_alive()
            thread.join(0.02)
        thread.join(0.5)
        assert thread.is_alive()
        claims.made(1, early.make(1))
        thread.join(300)
    assert not thread.is_alive()
    assert late.made == list(range(2, SHARDS))


HOLDER = f"""
import sys, time
from expandr_core.store import leases
from expandr_core.store.claims import Claims
from expandr_core.store.store import Store
leases.REFRESH, leases.SETTLE = 0.3, 0.2
with Claims(Store(sys.argv[1], sys.argv[2]), "{WORK}", {SHARDS}) as claims:
    assert claims.one_is_free() and claims.take(0) and claims.take(1)
    print("got them", flush=True)
    time.sleep(600)
"""


def test_the_claims_of_a_killed_run_are_spread_over_the_others(url, tmp_path):
    command = [sys.executable, "-c", HOLDER, url, str(tmp_path / "holder")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "got them\n"
        [other] = machines(url, tmp_path, 1)
        thread = threading.Thread(target=other.share)
        thread.start()
        while len(other.made) < SHARDS - 2:
            assert thread.is_alive()
            thread.join(0.02)
        process.send_signal(signal.SIGKILL)
        thread.join(300)
    assert not thread.is_alive()
    assert other.made[:-2] == list(range(2, SHARDS)) and set(other.made[-2:]) == {0, 1}


def test_a_run_that_fails_gives_up_its_claims_at_once(url, tmp_path):
    failing, other = machines(url, tmp_path, 2)
    with pytest.raises(ZeroDivisionError), failing.claims() as claims:
        assert claims.one_is_free()
        raise ZeroDivisionError
    with other.claims() as claims:
        assert claims.one_is_free() and claims.take(0)


def test_of_two_that_a_server_let_claim_at_once_the_later_has_the_shard(tmp_path, s3, monkeypatch):
    """SeaweedFS may take several conditional writes that arrive together."""
    early, late = machines("s3://bucket/some/prefix", tmp_path, 2)
    look = Claims._look

    def overtaken(claims: Claims) -> None:
        body = json.dumps({"holder": "late", "host": "h", "process": 7})
        key = f"some/prefix/locks/{WORK}/0"
        s3.client.put_object(Bucket="bucket", Key=key, Body=body)
        look(claims)

    with early.claims() as claims, monkeypatch.context() as patch:
        patch.setattr(Claims, "_look", overtaken)
        assert not claims.take(0)
    with late.claims() as claims:
        assert claims.one_is_free() and not claims.take(0) and claims.take(1)


def test_numbers_that_the_stage_does_not_have_are_not_waited_for(url, tmp_path):
    [machine] = machines(url, tmp_path, 1)
    machine.share(range(0, SHARDS, 2))
    assert machine.made == list(range(0, SHARDS, 2))


def test_a_shard_that_was_damaged_since_it_was_made_is_made_again(tmp_path):
    url = str(tmp_path / "store")
    first, second = machines(url, tmp_path, 2)
    first.share()
    key = full("expand_shard-3")
    Path(first.store.folder(key), "rows").write_text("damaged")
    first.store.remove(full("expand_shard-5"))
    second.share()
    assert second.made == [3, 5]
    assert len(marked(second)) == SHARDS


def test_marks_are_forgotten_when_they_have_served_or_are_old(url, tmp_path):
    [machine] = machines(url, tmp_path, 1)
    machine.share()
    drop_marks(machine.store, WORK)
    drop_marks(machine.store, WORK)
    assert marked(machine) == []
    machine.share()
    assert marked(machine)
    soon = datetime.now(UTC) + timedelta(days=1)
    found = find_garbage(machine.store, None, soon)
    assert remove_garbage(found) == [""] * len(found)
    assert marked(machine) == []
