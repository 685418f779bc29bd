"""The registry: aliases move one at a time, can go back, and what they name stays."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from store_keys import full
from store_world import put

from expandr_core.errors import DataError
from expandr_core.store import registry
from expandr_core.store.garbage import find_garbage, remove_garbage
from expandr_core.store.registered_model import Author, Version
from expandr_core.store.registry import (
    Overtaken,
    find_version,
    judge,
    promote,
    read_model,
    roll_back,
)
from expandr_core.store.store import Store

ME = Author("someone", "a test")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["a folder", "S3"])
def store(request, tmp_path: Path) -> Store:
    if request.param == "S3":
        return request.getfixturevalue("remote")
    return Store(str(tmp_path / "store"))


def run_of(store: Store, name: str) -> Version:
    """Record a run with a corpus and two models of its own."""
    corpus = put(store, "prepare-1", {"corpus": "c"})
    made = {
        role: put(
            store, f"{role}-{name}", {"file": f"{role} {name}"}, inputs={"c": corpus.model_dump()}
        )
        for role in ("llm", "retriever")
    }
    steps = [{"artifact": each.model_dump()} for each in (corpus, *made.values())]
    store.write_record(name, {"name": name, "steps": steps})
    return Version(run=name, models=made, created=NOW, actor="someone")


def collect(store: Store) -> None:
    remove_garbage(find_garbage(store, 0, datetime.now(UTC) + timedelta(days=30)))


def test_an_alias_moves_forth_and_back_and_garbage_collection_keeps_what_it_may_name(store):
    versions = {name: run_of(store, name) for name in ("1", "2", "3", "4", "5", "unpromoted")}
    for name in "12345":
        promote(store, "demo", versions[name], "champion", ME)
    promote(store, "demo", versions["1"], "first", ME)
    before = {name: store.manifest(full(f"llm-{name}"))["digest"] for name in "12345"}
    collect(store)
    assert [record["name"] for record in store.records()] == ["1", "3", "4", "5"]
    assert not store.lookup(full("llm-2")) and not store.lookup(full("llm-unpromoted"))
    assert store.lookup(full("llm-3")) and store.lookup(full("prepare-1"))
    for number in (4, 3):
        model = roll_back(store, "demo", "champion", ME)
        found = find_version(store, "champion")
        assert found and found == ("demo", model.version(number))
        llm = found[1].models["llm"]
        assert store.lookup(llm.key) == llm and llm.digest == before[str(number)]
    with pytest.raises(DataError, match="run 2 is no longer whole: the record of run 2, llm-"):
        roll_back(store, "demo", "champion", ME)
    model = roll_back(store, "demo", "champion", ME, to=1)
    assert [(move.action, move.before, move.after) for move in model.history[-3:]] == [
        ("rolled back", 5, 4), ("rolled back", 4, 3), ("rolled back", 3, 1)
    ]  # fmt: skip
    with pytest.raises(
        DataError, match="cannot be rolled back; the versions that it named before: none"
    ):
        roll_back(store, "demo", "champion", ME)


def test_of_two_gates_at_once_the_second_is_told_that_the_champion_is_another_one(store):
    first, second, worse = (run_of(store, name) for name in ("1", "2", "3"))

    def gate(version: Version) -> bool:
        try:
            judge(store, "demo", version, tested_against=0, passed=True, author=ME)
        except Overtaken:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(gate, (first, second)))
    assert sorted(won) == [False, True]
    model = judge(store, "demo", worse, tested_against=1, passed=False, author=ME)
    assert model.aliases == {"champion": 1, "candidate": 2}
    assert [each.run for each in model.versions] == [("1", "2")[won.index(True)], "3"]
    assert (model.history[-1].action, model.history[-1].alias) == ("refused", "champion")
    collect(store)
    assert {each["name"] for each in store.records()} == {each.run for each in model.versions}


def test_no_move_is_lost_when_many_write(tmp_path):
    store = Store(str(tmp_path / "store"))
    versions = [run_of(store, name) for name in "12"]

    def write(writer: int) -> None:
        for number in range(2):
            promote(store, "demo", versions[number % 2], f"alias-{writer}", ME)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    model = read_model(store, "demo")
    assert len(model.history) == 6 and len(model.versions) == 2
    assert set(model.aliases) == {f"alias-{n}" for n in range(3)}


def test_where_a_server_has_no_conditions_no_move_is_lost_either(remote, monkeypatch):
    from expandr_core.store import leases

    monkeypatch.setattr(leases, "SETTLE", 1)  # longer than a request takes on a busy machine
    monkeypatch.setattr(registry, "_POLL", 0.05)
    stores = [Store(remote.url, remote.scratch / name) for name in "ab"]
    for each in stores:
        each.leases._lacking = ["If-Match"]
    version = run_of(remote, "1")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: promote(stores[n], "demo", version, f"alias-{n}", ME), range(2)))
    assert set(read_model(remote, "demo").aliases) == {"alias-0", "alias-1"}


KILLED = """
import os, signal, sys
from pathlib import Path
from expandr_core.store.registered_model import Author, Version
from expandr_core.store.registry import promote
from expandr_core.store.store import Store
Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
version = Version.model_validate_json(sys.argv[2])
promote(Store(sys.argv[1]), "demo", version, "champion", Author("a", "b"))
"""


def test_a_kill_while_an_alias_moves_leaves_it_where_it_was(tmp_path):
    store = Store(str(tmp_path / "store"))
    promote(store, "demo", run_of(store, "1"), "champion", ME)
    later = run_of(store, "2")
    killed = subprocess.run([sys.executable, "-c", KILLED, store.url, later.model_dump_json()])
    assert killed.returncode == -signal.SIGKILL
    left = sorted(os.listdir(tmp_path / "store/models"))
    assert len(left) == 2 and left[1].startswith("demo.json.partial-")
    found = find_version(store, "champion")
    assert found and found[1].run == "1"
    collect(store)
    assert os.listdir(tmp_path / "store/models") == ["demo.json"]
    assert promote(store, "demo", run_of(store, "2"), "champion", ME).aliases == {"champion": 2}


def test_names_find_versions_and_other_names_are_refused(tmp_path):
    store = Store(str(tmp_path / "store"))
    version = run_of(store, "1")
    for name in ("demo", "scifact"):
        promote(store, name, version, "champion", ME)
    with pytest.raises(DataError, match=r"name one of them: demo/champion, scifact/champion"):
        find_version(store, "champion")
    for name in ("scifact/champion", "scifact/1"):
        assert find_version(store, name) == ("scifact", version.model_copy(update={"number": 1}))
    assert find_version(store, "latest") is find_version(store, "20260101T") is None
    for name, alias in (("demo", "latest"), ("demo", "../x"), ("1", "champion")):
        with pytest.raises(DataError, match="cannot name a"):
            promote(store, name, version, alias, ME)


def test_what_an_alias_names_already_is_not_promoted_again_but_gets_its_tags(tmp_path):
    store = Store(str(tmp_path / "store"))
    version = run_of(store, "1")
    before = promote(store, "demo", version, "champion", ME)
    tagged = version.model_copy(update={"tags": {"team": "a"}})
    after = promote(store, "demo", tagged, "champion", ME)
    assert after == read_model(store, "demo") and after.history == before.history
    assert after.aliases == {"champion": 1} and after.version(1).tags == {"team": "a"}


def test_a_moved_store_serves_the_same_versions(tmp_path):
    store = Store(str(tmp_path / "store"))
    promote(store, "demo", run_of(store, "1"), "champion", ME)
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    text = (tmp_path / "elsewhere/models/demo.json").read_text()
    assert str(tmp_path) not in text and json.loads(text)["schema"] == 1
    moved = Store(str(tmp_path / "elsewhere"))
    found = find_version(moved, "champion")
    assert found and all(moved.lookup(each.key) == each for each in found[1].models.values())


def test_a_model_that_cannot_be_understood_stops_garbage_collection(tmp_path):
    store = Store(str(tmp_path / "store"))
    promote(store, "demo", run_of(store, "1"), "champion", ME)
    path = tmp_path / "store/models/demo.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(
        DataError, match=r"demo\.json: not a registered model that this version reads"
    ):
        find_garbage(store, 0, datetime.now(UTC))
