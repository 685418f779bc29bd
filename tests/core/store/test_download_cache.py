"""The read cache: it stays below its limit, and nothing that somebody reads is removed."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_keys import full
from store_world import put

from expandr_core.store.artifacts import Artifact
from expandr_core.store.download_cache import ReadCache, files_below
from expandr_core.store.store import Store

LIMIT = 10_000  # bytes


@pytest.fixture
def made(remote) -> list[Artifact]:
    """Eight artifacts of 3 kB: three fit into the cache."""
    return [put(remote, f"expand-{n}", {"rows": f"{n}" * 3000}) for n in range(8)]


@pytest.fixture
def reader(remote, tmp_path) -> Store:
    return Store(remote.url, tmp_path / "reader", cache_bytes=LIMIT)


def cached(store: Store) -> set[str]:
    return {path.name for path in store.cache.folder.iterdir() if path.is_dir()}


def read(store: Store, artifact: Artifact) -> str:
    text = (store.local(artifact) / "rows").read_text()
    store.release(artifact)
    return text


def test_the_least_recently_used_go_first(reader, made):
    for number in (0, 1, 2, 0, 3):
        read(reader, made[number])
        time.sleep(0.01)
    assert cached(reader) == {full("expand-0"), full("expand-2"), full("expand-3")}
    assert read(reader, made[1]) == "1" * 3000


def test_what_this_process_reads_stays_even_above_the_limit(reader, made, caplog):
    folders = [reader.local(artifact) for artifact in made]
    assert all((folder / "rows").exists() for folder in folders)
    assert "more than the limit" in caplog.text
    for artifact in made:
        reader.release(artifact)
    Store(reader.url, reader.scratch, cache_bytes=LIMIT).local(made[0])
    assert len(cached(reader)) == 8  # nothing had to come
    reader.cache.make_room(1)
    assert len(cached(reader)) == 3


READER = """
import sys, time
from expandr_core.store.download_cache import ReadCache
from pathlib import Path
ReadCache(Path(sys.argv[1]), None).use("KEY")
print("in use", flush=True)
time.sleep(600)
""".replace("KEY", full("expand-0"))


def test_what_another_process_reads_stays_until_it_is_killed(reader, made):
    read(reader, made[0])
    command = [sys.executable, "-c", READER, str(reader.cache.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "in use\n"
        for artifact in made[1:]:
            read(reader, artifact)
        assert full("expand-0") in cached(reader)
        process.kill()
    for artifact in made[1:4]:
        read(reader, artifact)
    assert full("expand-0") not in cached(reader)


def test_without_a_limit_everything_stays(remote, made, tmp_path):
    store = Store(remote.url, tmp_path / "reader")
    for artifact in made:
        read(store, artifact)
    assert len(cached(store)) == 8


def test_readers_side_by_side_do_not_disturb_each_other(remote, made, tmp_path):
    stores = [Store(remote.url, tmp_path / "reader", cache_bytes=LIMIT) for _ in range(4)]

    def work(number: int) -> list[str]:
        return [read(stores[number % 4], made[(number + n) % 8]) for n in range(16)]

    with ThreadPoolExecutor(4) as pool:
        for number, texts in enumerate(pool.map(work, range(4))):
            assert texts == [f"{(number + n) % 8}" * 3000 for n in range(16)]
    files = [path for path in stores[0].cache.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"rows", "in-use"}


def test_looking_for_room_is_rare(tmp_path, monkeypatch):
    cache, looks = ReadCache(tmp_path, 1000), []
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: (looks.append(path), listed(path))[1])
    cache.use("a")
    for _ in range(100):
        cache.make_room(5)
    assert 0 < len(looks) <= 6


FULL = """
import resource, signal, sys
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import Store
store = Store(sys.argv[1], sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
store.local(Artifact(key="KEY", digest=""))
""".replace("KEY", full("expand-0"))


def test_a_full_disk_is_named_with_the_remedy(made, remote, tmp_path):
    scratch = tmp_path / "full"
    command = [sys.executable, "-c", FULL, remote.url, str(scratch)]
    end = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    last = end.stderr.strip().splitlines()[-1]
    assert last.startswith("OSError") and f"{scratch}: the disk is full" in last
    assert "gc" in last and "read cache" in last
    assert not list(scratch.rglob("*partial*"))


def test_folders_that_vanish_while_files_are_counted_are_left_out(tmp_path):
    """Another process that shares the cache removes what it does not need."""
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_bytes(b"1234")
    found = files_below(tmp_path)
    size, _ = next(found)
    for name in ("one", "two"):
        shutil.rmtree(tmp_path / name)
    assert [size, *found] == [4]
