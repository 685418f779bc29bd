"""The artifact store: what enters a key, what is found, and that no damage goes unnoticed."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_keys import full
from store_world import KEY, put, with_parts
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.errors import DataError
from expandr_core.options.preferences import PreferenceOptions
from expandr_core.options.training import DPOTrainingOptions
from expandr_core.runtime.runner import make_spec
from expandr_core.stages import pairs
from expandr_core.store import verification
from expandr_core.store.artifacts import Artifact, StageSpec, content_digest
from expandr_core.store.store import MANIFEST, DamagedArtifact, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def folder_of(store: Store, key: str) -> Path:
    return Path(store.root, "artifacts", key)


# Keys


REWARDS = Artifact(key="reward-1", digest="d1")


def spec(**changes) -> StageSpec:
    arguments = {"options": PreferenceOptions(), "inputs": {"rewards": REWARDS}} | changes
    return make_spec("pairs", **arguments)


def test_the_same_specification_has_the_same_key():
    assert spec().key == spec().key
    assert spec().key.startswith("pairs-")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"options": PreferenceOptions(minimum_margin=0.1)},
        {"inputs": {"rewards": REWARDS.model_copy(update={"digest": "d2"})}},
        {"inputs": {"other": REWARDS}},
        {"inputs": {"rewards": REWARDS, "more": REWARDS}},
        {"sources": {"a.jsonl": "d3"}},
    ],
    ids=["seed", "option", "input's content", "input's role", "one more input", "source"],
)
def test_what_determines_the_bytes_changes_the_key(change):
    assert spec(**change).key != spec().key


def test_a_higher_version_changes_the_key(monkeypatch):
    before = spec().key
    monkeypatch.setattr(pairs, "VERSION", pairs.VERSION + 1)
    assert spec().key != before


def test_an_input_enters_the_key_by_content_and_not_by_name():
    renamed = REWARDS.model_copy(update={"key": "reward-2", "counts": {"rows": 3}})
    assert spec(inputs={"rewards": renamed}).key == spec().key


def test_options_of_speed_and_place_are_not_in_the_key():
    one, other = (
        make_spec(
            "dpo",
            DPOTrainingOptions(device_batch_size=n, checkpoint_steps=n),
            seed=1,
            device=device,
        )
        for n, device in ((1, "cpu"), (2, "cuda"))
    )
    assert one.key == other.key
    assert one.runtime != other.runtime


def test_one_file_of_an_artifact_does_not_depend_on_the_others(store):
    before = put(store, "prepare-1", {"a": "same", "b": "old"})
    after = put(store, "prepare-2", {"a": "same", "b": "new"})
    assert before.at("a").digest == after.at("a").digest
    assert before.digest != after.digest


# A local folder


def test_what_is_committed_is_found(store):
    made = put(store, KEY, {"a.txt": "a", "sub/b.txt": "b"})
    assert store.lookup(KEY) == store.verify(KEY) == made
    assert set(made.files) == {"a.txt", "sub/b.txt"}
    assert (store.local(made) / "sub/b.txt").read_text() == "b"
    assert store.local(made.at("a.txt")).read_text() == "a"
    assert made.counts == {"rows": 2}
    assert made.stage == "expand"


def test_an_artifact_of_another_run_does_not_count_and_stays_whatever_the_clocks_say(store):
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    made = put(store, KEY, {"a": "1"}, created=tomorrow, runtime={"prefect_flow_run": "one"})
    assert store.lookup(KEY, made_by="one") == made
    assert store.lookup(KEY, made_by="another") is None
    assert store.lookup(KEY) == made


@pytest.mark.parametrize("text", ["1", "2"], ids=["equal", "other"])
def test_an_artifact_made_again_replaces_the_former(store, text):
    put(store, KEY, {"a": "1", "b": "1"}, created="2026-01-01T00:00:00+00:00")
    made = put(store, KEY, {"a": text, "b": "1"}, created="2026-01-02T00:00:00+00:00")
    assert store.manifest(KEY)["created"].startswith("2026-01-02")
    assert store.lookup(KEY) == made
    assert (store.local(made) / "a").read_text() == text
    assert os.listdir(Path(store.root, "artifacts")) == [KEY]


def test_the_scratch_folder_may_be_on_another_disk(tmp_path):
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk only")
    with tempfile.TemporaryDirectory(dir=shared_memory) as scratch:
        store = Store(str(tmp_path / "store"), scratch)
        made = put(store, KEY, {"a": "1"})
        assert store.lookup(KEY) == made
        assert os.listdir(Path(store.root, "artifacts")) == [KEY]


FULL = """
import resource, signal, sys
from pathlib import Path
from expandr_core.store.store import Store
store = Store(sys.argv[1], sys.argv[2])
with store.lock("KEY") as work:
    (work / "out").mkdir(exist_ok=True)
    (work / "out" / "a").write_text("2" * 5000)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
    if sys.argv[4] == "a record":
        store.write_record("1", {"steps": ["1" * 5000]})
    store.commit("KEY", work / "out", [], {"counts": {}, "notes": "1" * 3000})
""".replace("KEY", KEY)


@pytest.fixture
def another_disk() -> Iterator[Path]:
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("there is no second disk")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("former", ["1", "2" * 5000, None], ids=["other", "equal", "none"])
def test_a_full_disk_of_the_store_is_named_and_nothing_partial_stays(
    tmp_path, another_disk, former
):
    store = Store(str(tmp_path / "store"), another_disk)
    if former:
        put(store, KEY, {"a": former})
    before = everything_in(store)
    limit = (
        "2000" if former and len(former) > 1 else "4000"
    )  # the manifest is too large, or the file
    command = [sys.executable, "-c", FULL, store.url, str(another_disk), limit, "an artifact"]
    last = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()[-1]
    assert last.startswith("OSError") and f"{store.root}/artifacts" in last
    assert last.count("the disk is full") == 1 and "scratch" not in last and "gc --delete" in last
    assert everything_in(store) == before
    assert [path.name for path in Path(store.root, "artifacts").glob("*")] == [KEY] * bool(former)
    assert (another_disk / "work" / KEY / "out" / "a").stat().st_size == 5000  # nothing is lost


def test_a_full_disk_at_a_record_is_named_and_nothing_partial_stays(tmp_path, another_disk):
    store = Store(str(tmp_path / "store"), another_disk)
    command = [sys.executable, "-c", FULL, store.url, str(another_disk), "4000", "a record"]
    last = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()[-1]
    assert last.startswith("OSError") and f"{store.root}/runs: the disk is full" in last
    assert list(Path(store.root, "runs").iterdir()) == []


WRITES = {  # to a file that may have 100 bytes, as stages do
    "numpy": "import numpy; numpy.zeros(1000).tofile(open(path, 'wb', 0))",
    "safetensors": "import numpy; from safetensors.numpy import save_file\n"
    "    save_file({'a': numpy.zeros(1000)}, path)",
    "torch": "import torch; torch.save(torch.zeros(1000), path)",
}


@pytest.mark.parametrize("library", WRITES)
def test_a_full_disk_is_named_if_a_library_tells_of_it_by_a_text_alone(tmp_path, library):
    script = f"""
import resource, signal
from pathlib import Path
from expandr_core.store.filesystems import explain_full_disk
path = {str(tmp_path / "file")!r}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with explain_full_disk(Path({str(tmp_path)!r})):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    {WRITES[library]}
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert last.startswith("OSError") and f"{tmp_path}: the disk is full" in last


@pytest.mark.parametrize("step", ["first", "second", "third"])
def test_a_full_disk_while_renaming_leaves_the_former_artifact(store, monkeypatch, step):
    former, renames, rename = put(store, KEY, {"a": "1"}), [], Path.rename

    def fail(path: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == ["first", "second", "third"].index(step) + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match=f"{store.root}/artifacts: the disk is full"):
        put(store, KEY, {"a": "2"})
    assert store.lookup(KEY) == former
    assert os.listdir(Path(store.root, "artifacts")) == [KEY]


def test_equal_content_has_equal_digests_under_another_key(store):
    assert put(store, "a-1", {"x": "1"}).digest == put(store, "a-2", {"x": "1"}).digest
    assert put(store, "a-3", {"y": "1"}).digest != put(store, "a-2", {"x": "1"}).digest


def test_what_was_never_made_is_not_found_and_nobody_warns(store, caplog):
    assert store.lookup(KEY) is None
    assert not caplog.records
    assert store.keys() == []


def test_keys_can_be_listed_by_their_beginning(store):
    for key in ("b-1", "a-2", "a-1"):
        put(store, key, {"x": key})
    assert store.keys() == sorted(map(full, ("a-1", "a-2", "b-1")))
    assert store.keys("a-") == sorted(map(full, ("a-1", "a-2")))


def test_parts_are_found_in_their_order(store):
    made = with_parts(store)
    assert [part.key for part in store.shards(made)] == [
        full("expand_shard-0"),
        full("expand_shard-1"),
    ]
    other = put(store, "expand-2", {"whole": "w"}, store.shards(made)[::-1])
    assert other.digest != made.digest


def flip(path: Path, position: int = 0, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


DAMAGES = {
    "a byte flipped": lambda root: flip(root / KEY / "whole"),
    "a file deleted": lambda root: (root / KEY / "whole").unlink(),
    "a file cut short": lambda root: (root / KEY / "whole").write_text(""),
    "the manifest cut short": lambda root: (root / KEY / MANIFEST).write_text('{"key": "expand'),
    "the manifest empty": lambda root: (root / KEY / MANIFEST).write_text(""),
    "the manifest no object": lambda root: (root / KEY / MANIFEST).write_text("[]"),
    "another's manifest": lambda root: shutil.copy(
        root / full("expand_shard-0") / MANIFEST, root / KEY / MANIFEST
    ),
    "a part's byte flipped": lambda root: flip(root / full("expand_shard-1") / "rows"),
    "a part's file deleted": lambda root: (root / full("expand_shard-1") / "rows").unlink(),
    "a part deleted": lambda root: shutil.rmtree(root / full("expand_shard-1")),
    "a part's manifest deleted": lambda root: (root / full("expand_shard-1") / MANIFEST).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_reported_and_stays_until_the_artifact_is_made_again(store, caplog, damage):
    made = with_parts(store)
    DAMAGES[damage](Path(store.root, "artifacts"))
    before = everything_in(store)
    with pytest.raises(DamagedArtifact):
        store.verify(KEY)
    with caplog.at_level(logging.WARNING, "expandr_core"):
        assert store.lookup(KEY) is None
    assert f"{KEY}: " in caplog.text and "missing" in caplog.text
    assert store.lookup(full("expand_shard-0")) is not None
    assert (store.lookup(full("expand_shard-1")) is None) == ("part" in damage)
    assert everything_in(store) == before
    assert with_parts(store).digest == made.digest
    assert store.lookup(KEY) == made


def everything_in(store: Store) -> dict[str, bytes]:
    files = [path for path in Path(store.root, "artifacts").rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in files}


def test_a_part_that_was_made_anew_with_other_content_is_noticed(store):
    with_parts(store)
    shutil.rmtree(folder_of(store, full("expand_shard-1")))
    put(store, "expand_shard-1", {"rows": "other"})
    with pytest.raises(DamagedArtifact, match="has changed"):
        store.verify(KEY)


@settings(max_examples=60)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_manifest_changes_what_is_read(store, position, bit):
    if store.lookup(KEY) is None:
        put(store, KEY, {"a": "1"})
    before, path = store.manifest(KEY), folder_of(store, KEY) / MANIFEST
    whole = path.read_bytes()
    flip(path, position % len(whole), bit)
    with contextlib.suppress(DamagedArtifact):
        assert store.manifest(KEY) == before  # it hit the space between two values
    path.write_bytes(whole)


def reseal(store: Store, key: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest as somebody does who can seal it again; the digest follows if it can."""
    path = folder_of(store, key) / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["manifest_sha256"]
    right = manifest.get("digest")
    change(manifest)
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        files = {each["path"]: each["sha256"] for each in manifest["files"]}
        parts = [Artifact(key=each["key"], digest=each["digest"]) for each in manifest["parts"]]
        if manifest["digest"] == right:
            manifest["digest"] = content_digest(files, parts)
    text = json.dumps(manifest, sort_keys=True)
    seal = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(manifest | {"manifest_sha256": seal}))


PATHS = [
    "../outside", "a/../../outside", "/etc/hostname", "", ".", "..", "./a", "a//b", "a/", "a\\..\\b",
    "a\0b", "a\nb", "manifest.json", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_file_outside_the_artifact_is_damage(store, path):
    put(store, KEY, {"a": "1"})
    Path(store.root, "artifacts", "outside").write_text("1")
    (folder_of(store, KEY) / "b").write_text("1")
    reseal(store, KEY, lambda manifest: manifest["files"][0].update(path=path))
    before = everything_in(store)
    with pytest.raises(DamagedArtifact, match=KEY):
        store.verify(KEY)
    assert store.lookup(KEY) is None
    assert everything_in(store) == before


@pytest.mark.parametrize("path", sorted({*PATHS} - {"", "\ud800"}))
@pytest.mark.parametrize(
    "change", [lambda path: {"path": path}, lambda path: {"files": {path: "0" * 64}}]
)
def test_a_part_outside_its_artifact_is_damage(store, path, change):
    with_parts(store)
    reseal(store, KEY, lambda manifest: manifest["parts"][0].update(change(path)))
    with pytest.raises(DamagedArtifact, match=KEY):
        store.verify(KEY)


KEYS = ["../../outside", "..", "", "expand-1", f"{KEY}\n", f"{KEY}/..", f"x/{KEY}", KEY.upper()]


@pytest.mark.parametrize("key", KEYS)
def test_what_is_no_key_is_damage_and_leads_nowhere(store, key):
    made = with_parts(store)
    for name in ("parts", "inputs"):
        reseal(
            store,
            KEY,
            lambda manifest, name=name: manifest.update(
                {name: {"x": {"key": key, "digest": made.digest}}}
                if name == "inputs"
                else {name: [{"key": key, "digest": made.digest}]}
            ),
        )
        with pytest.raises(DamagedArtifact, match=KEY):
            store.verify(KEY)
        with_parts(store)
    assert store.lookup(key) is None
    for use in (store.manifest, store.remove, store.verify):
        with pytest.raises(DamagedArtifact, match="not an artifact key"):
            use(key)
    assert store.lookup(KEY) == made


MANIFESTS = {
    **{
        f"without {name}": lambda manifest, name=name: manifest.pop(name)
        for name in ("key", "digest", "files", "parts", "counts")
    },
    **{
        f"a file without {name}": lambda manifest, name=name: manifest["files"][0].pop(name)
        for name in ("path", "size", "sha256")
    },
    "a wrong digest": lambda manifest: manifest.update(digest="0" * 64),
    "no files": lambda manifest: manifest.update(files=[], parts=[]),
    "files of another type": lambda manifest: manifest.update(files={"a": 1}),
    "parts of another type": lambda manifest: manifest.update(parts="none"),
    "a file twice": lambda manifest: manifest["files"].append(manifest["files"][0]),
    "sources of another type": lambda manifest: manifest.update(sources=["a"]),
    "itself as its part": lambda manifest: manifest["parts"].append(
        {"key": KEY, "digest": manifest["digest"]}
    ),
    "Infinity": lambda manifest: manifest.update(seconds=float("inf")),
    "NaN": lambda manifest: manifest["counts"].update(loss=float("nan")),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_resealed_manifest_that_is_none_is_damage(store, name):
    made = with_parts(store)
    reseal(store, KEY, MANIFESTS[name])
    with pytest.raises(DamagedArtifact, match=KEY):
        store.verify(KEY)
    assert store.lookup(KEY) is None
    assert with_parts(store) == made == store.lookup(KEY)


def test_a_part_that_is_its_own_ancestor_is_damage(store):
    """Two manifests, each with the other as its part: no digests of the two can be right."""
    other = put(store, "expand-2", {"whole": "w"})
    one = put(store, KEY, {"whole": "w"}, [other])
    part = {"key": KEY, "digest": one.digest}
    reseal(store, other.key, lambda manifest: manifest["parts"].append(part))
    with pytest.raises(DamagedArtifact, match="has changed"):
        store.verify(KEY)


def test_parts_of_parts_are_verified_however_deep(store):
    made = [put(store, "expand-0", {"whole": "w"})]
    for depth in range(1, 40):
        made.append(put(store, f"expand-{depth}", {"whole": "w"}, [made[-1], made[-1]]))
    assert store.verify(made[-1].key) == made[-1]
    (folder_of(store, made[0].key) / "whole").write_text("x")
    with pytest.raises(DamagedArtifact, match=made[0].key):
        store.verify(made[-1].key)


@pytest.mark.parametrize("target", ["a file", "a folder"])
def test_a_link_out_of_the_artifact_is_damage(store, tmp_path, target):
    put(store, KEY, {"sub/a": "1"})
    place = folder_of(store, KEY) / ("sub/a" if target == "a file" else "sub")
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedArtifact, match="link"):
        store.verify(KEY)
    made = put(store, KEY, {"sub/a": "1"})
    assert store.lookup(KEY) == made
    assert (tmp_path / "elsewhere").exists()


def test_an_artifact_that_was_moved_to_another_disk_and_linked_is_whole(store, tmp_path):
    made = put(store, KEY, {"sub/a": "1"})
    folder_of(store, KEY).rename(tmp_path / "elsewhere")
    folder_of(store, KEY).symlink_to(tmp_path / "elsewhere")
    assert store.verify(KEY) == made
    other = put(store, KEY, {"sub/a": "2"})
    assert store.verify(KEY) == other
    assert (tmp_path / "elsewhere" / "sub" / "a").read_text() == "1"
    assert os.listdir(Path(store.root, "artifacts")) == [KEY]


@pytest.mark.parametrize(
    ("files", "facts", "said"),
    [
        ({"a": "1"}, {"counts": {"loss": float("nan")}}, "counts.loss"),
        ({"a": "1"}, {"counts": {}, "runtime": [float("inf")]}, "JSON"),
        ({"a\\b": "1"}, {}, "path"),
        ({}, {}, "no file"),
    ],
    ids=["NaN", "Infinity", "a backslash", "nothing"],
)
def test_what_could_not_be_read_again_is_not_written(store, files, facts, said):
    with pytest.raises(DataError, match=f"{KEY}.*{said}"):
        put(store, KEY, files, **facts)
    assert store.keys() == []


# While another process makes it again


def while_reading(monkeypatch, act: Callable[[], object]) -> None:
    """Act once, when the first file of an artifact has been hashed."""
    hashes, done = verification.sha256_of, []

    def hash_(path: Path) -> str:
        found = hashes(path)
        if not done:
            done.append(path)
            act()
        return found

    monkeypatch.setattr(verification, "sha256_of", hash_)


@pytest.mark.parametrize(
    "files",
    [{"a": "2", "b": "2"}, {"b": "1"}, {"a": "1", "c": "1"}, {"a": "1", "b": "1"}],
    ids=["other bytes", "a file less", "another file", "equal bytes"],
)
@pytest.mark.parametrize("read", ["lookup", "verify"])
def test_what_another_process_commits_while_we_hash_is_what_we_find(
    store, monkeypatch, files, read
):
    put(store, KEY, {"a": "1", "b": "1"})
    new = []
    other = Store(store.url)  # as another process has it
    while_reading(monkeypatch, lambda: new.append(put(other, KEY, files)))
    found = getattr(store, read)(KEY)
    assert [found] == new and other.lookup(KEY) == found
    assert (store.local(found) / "b").exists() == ("b" in files)


@pytest.mark.parametrize("read", ["lookup", "verify"])
def test_a_damaged_artifact_that_is_mended_while_we_hash_is_never_removed(store, monkeypatch, read):
    with_parts(store)
    flip(folder_of(store, full("expand_shard-1")) / "rows")
    while_reading(monkeypatch, lambda: with_parts(Store(store.url)))
    with contextlib.suppress(DamagedArtifact):
        getattr(store, read)(KEY)
    assert len(store.keys()) == 3
    assert store.lookup(KEY)


def test_a_file_is_hashed_once_as_long_as_it_stays_as_it_is(store, monkeypatch):
    monkeypatch.setattr(verification, "_MOMENT", 0)
    path = folder_of(store, put(store, KEY, {"rows": "1"}).key) / "rows"
    hashed, hash_ = [], verification.sha256_of
    monkeypatch.setattr(verification, "sha256_of", lambda path: hashed.append(path) or hash_(path))
    assert store.lookup(KEY) and Store(store.url).lookup(KEY)
    assert hashed == [path]
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    flip(path)
    os.utime(path, ns=times)  # as if nothing had happened
    assert store.lookup(KEY) is None
    flip(path)
    assert store.lookup(KEY)
    assert hashed == [path] * 3


def test_a_file_of_this_moment_is_always_hashed(store, monkeypatch):
    put(store, KEY, {"rows": "1"})
    hashed, hash_ = [], verification.sha256_of
    monkeypatch.setattr(verification, "sha256_of", lambda path: hashed.append(path) or hash_(path))
    assert store.lookup(KEY) and store.lookup(KEY)
    assert len(hashed) == 2


def test_looking_at_a_damaged_store_changes_nothing(store):
    with_parts(store)
    flip(folder_of(store, full("expand_shard-1")) / "rows")
    flip(folder_of(store, KEY) / MANIFEST, 30)
    before = everything_in(store)
    for command in (["verify"], ["show", KEY], ["gc"], ["export-run", KEY]):
        said = CliRunner().invoke(app, [*command, "--store", store.url])
        assert said.exit_code in (0, 1, 2) and not isinstance(said.exception, DamagedArtifact)
    assert everything_in(store) == before


def test_a_folder_without_manifest_does_not_exist_and_is_replaced(store):
    folder = folder_of(store, KEY)
    folder.mkdir(parents=True)
    (folder / "leftover").write_text("half")
    assert store.lookup(KEY) is None
    made = put(store, KEY, {"a": "1"})
    assert list(made.files) == ["a"]
    assert not (folder / "leftover").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from expandr_core.store import store as module
store = module.Store(sys.argv[1])
folder = store.scratch / "work" / "KEY" / "out"
folder.mkdir(parents=True)
(folder / "a").write_text("1")
if sys.argv[2] == "before the manifest":
    module.content_digest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
else:
    Path.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
store.commit("KEY", folder, [], {"counts": {}})
""".replace("KEY", KEY)


@pytest.mark.parametrize("when", ["before the manifest", "before the rename"])
def test_a_kill_while_committing_leaves_nothing_that_is_found(store, when):
    child = subprocess.run([sys.executable, "-c", KILLED, store.url, when])
    assert child.returncode == -signal.SIGKILL
    assert store.lookup(KEY) is None
    assert store.keys() == []
    assert store.lookup(put(store, KEY, {"a": "1"}).key)


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/prefix", "s3://key@bucket"])
def test_a_url_with_credentials_is_refused_and_not_repeated(url):
    with pytest.raises(DataError, match="credentials") as refusal:
        Store(url)
    assert "secret" not in str(refusal.value)


def test_a_broken_record_is_named_and_left_out(store, caplog):
    store.write_record("2", {"name": "2"})
    for broken in ("1", "3"):
        Path(store.root, "runs", f"{broken}.json").write_text('{"name": ')
    assert store.records() == [{"name": "2"}]
    assert "runs/1.json" in caplog.text and "runs/3.json" in caplog.text


def test_records_of_runs_are_kept_in_the_order_of_their_names(store):
    assert store.records() == []
    for name in ("2", "1"):
        store.write_record(name, {"name": name})
    assert [record["name"] for record in store.records()] == ["1", "2"]


# The lock


LOCKER = """
import logging, sys, time
from expandr_core.store.store import Store
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
with Store(sys.argv[1]).lock("KEY") as work:
    (work / "unfinished").touch()
    print("got it", flush=True)
    time.sleep(float(sys.argv[2]))
""".replace("KEY", KEY)


def locker(store: Store, seconds: int) -> subprocess.Popen:
    command = [sys.executable, "-u", "-c", LOCKER, store.url, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_second_process_waits_for_the_lock_and_gets_it_when_the_holder_is_killed(store):
    with locker(store, 600) as holder, locker_waiting(store, holder) as second:
        time.sleep(0.3)
        assert second.poll() is None
        holder.kill()
        assert second.stdout and second.stdout.readline() == "got it\n"
        assert second.wait(300) == 0
    assert holder.returncode == -signal.SIGKILL
    assert (store.scratch / "work" / KEY / "unfinished").exists()  # it survives for the next


def locker_waiting(store: Store, holder: subprocess.Popen) -> subprocess.Popen:
    assert holder.stdout and holder.stdout.readline() == "got it\n"
    second = locker(store, 0)
    assert second.stdout and "waiting" in second.stdout.readline()
    return second


def test_a_lost_artifact_is_called_lost_before_a_library_opens_it(store):
    made = put(store, KEY, {"a": "1"})
    shutil.rmtree(folder_of(store, KEY))
    with pytest.raises(FileNotFoundError, match=f"{KEY} is not in .* any more"):
        store.local(made)
