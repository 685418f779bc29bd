"""Garbage collection: what no kept run needs goes, and nothing that is needed or young."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_keys import full
from store_world import KEY, put
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.errors import DataError
from expandr_core.store.artifacts import Artifact
from expandr_core.store.garbage import find_garbage, remove_garbage
from expandr_core.store.run_records import needs_of, write_text
from expandr_core.store.store import Store

DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def make(store: Store, key: str, inputs: list[Artifact] | None = None, parts=None) -> Artifact:
    named = {str(number): each.model_dump() for number, each in enumerate(inputs or [])}
    return put(store, key, {"file": key}, parts, inputs=named)


def record(store: Store, name: str, *steps: Artifact) -> None:
    listed = [{"artifact": step.model_dump()} for step in steps]
    store.write_record(name, {"name": name, "steps": listed})


def in_a_month() -> datetime:
    """The time before which everything is old that was made in this test."""
    return datetime.now(UTC) + 30 * DAY


def collect(store: Store, keep_runs: int | None, before: datetime | None = None) -> set[str]:
    found = find_garbage(store, keep_runs, before or in_a_month())
    remove_garbage(found)
    return {each.name for each in found}


def age(path: Path, days: int) -> None:
    """Make a file, or all below a folder, older."""
    then = time.time() - days * 86_400
    for each in [path, *path.rglob("*")]:
        os.utime(each, (then, then))


def three_runs(store: Store) -> None:
    """Three runs on one corpus; each has a model made of shards of its own."""
    corpus = make(store, "prepare-1")
    for run in "123":
        shards = [make(store, f"expand_shard-{run}{n}", [corpus]) for n in range(2)]
        whole = make(store, f"expand-{run}", [corpus], shards)
        record(store, run, make(store, f"dpo-{run}", [whole]))
    make(store, "dpo-unrecorded", [corpus])


OF_RUN = {
    n: {
        full(f"expand_shard-{n}0"),
        full(f"expand_shard-{n}1"),
        full(f"expand-{n}"),
        full(f"dpo-{n}"),
    }
    for n in "123"
}


@pytest.mark.parametrize("where", ["a folder", "S3"])
def test_what_only_dropped_runs_need_goes(where, tmp_path, request):
    store = request.getfixturevalue("remote" if where == "S3" else "store")
    three_runs(store)
    assert (
        collect(store, 1)
        == {"1.json", "2.json", full("dpo-unrecorded")} | OF_RUN["1"] | OF_RUN["2"]
    )
    assert set(store.keys()) == {full("prepare-1")} | OF_RUN["3"]
    assert [record["name"] for record in store.records()] == ["3"]
    assert store.lookup(full("dpo-3")) and store.lookup(full("expand-3"))
    assert collect(store, 1) == set()


@pytest.mark.parametrize("where", ["a folder", "S3"])
def test_the_report_of_a_run_goes_with_it_and_the_index_lists_those_that_are_left(where, request):
    store = request.getfixturevalue("remote" if where == "S3" else "store")
    three_runs(store)
    root = f"{store.root}/reports"
    for name in ("0", "1", "2", "3"):  # an earlier version left the first one
        write_text(store.filesystem, f"{root}/{name}", "report.html", name)
    write_text(store.filesystem, root, "index.html", "runs 0, 1, 2, 3")
    command = ["gc", "--keep-runs", "1", "--older-than", "0d", "--store", store.url]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0 and "2 x run, 9 x artifact, 3 x report" in said.output, said.output
    assert store.filesystem.exists(f"{root}/0/report.html")
    assert CliRunner().invoke(app, [*command, "--delete"]).exit_code == 0
    left = [path for path in store.filesystem.find(root) if path.endswith("report.html")]
    assert [path.removeprefix(f"{root}/") for path in left] == ["3/report.html"]
    assert "runs 0" not in store.filesystem.cat_file(f"{root}/index.html").decode()


def test_a_report_that_is_being_written_stays(store):
    write_text(store.filesystem, f"{store.root}/reports/9", "report.md", "half")
    assert collect(store, 0, datetime.now(UTC) - DAY) == set()


def test_what_a_kill_left_of_a_report_goes(store):
    three_runs(store)
    half = Path(store.root, "reports", "3", "report.html.partial-1f3a")
    half.parent.mkdir(parents=True)
    half.write_text("half")
    assert collect(store, None, datetime.now(UTC) - DAY) == set()  # it may be written just now
    age(half, 2)
    assert collect(store, None, datetime.now(UTC) - DAY) == {f"3/{half.name}"}


def test_all_runs_are_kept_unless_a_number_is_given(store):
    three_runs(store)
    assert collect(store, None) == {full("dpo-unrecorded")}


def test_what_a_run_that_goes_on_has_found_stays_however_old_it_is(store):
    three_runs(store)
    age(Path(store.root, "artifacts"), 10)
    age(Path(store.root, "runs"), 10)
    whole = store.verify(full("expand-2"))
    store.write_note("4", {"name": "4", "steps": [{"artifact": whole.model_dump()}]})
    yesterday = datetime.now(UTC) - DAY
    gone = {full("dpo-2"), full("dpo-unrecorded")} | OF_RUN["1"]
    assert collect(store, 1, yesterday) == {"1.json", "2.json"} | gone
    age(Path(store.root, "begun"), 10)  # it was killed
    assert collect(store, 1, yesterday) == {"4.json"} | (OF_RUN["2"] - {full("dpo-2")})


def test_what_a_running_run_names_stays_whatever_the_age_that_is_asked_for(store):
    three_runs(store)
    step = {"artifact": store.verify(full("expand-2")).model_dump()}
    store.write_note("4", {"name": "4", "state": "running", "steps": [step]})
    store.write_note("5", {"name": "5", "state": "failed", "steps": []})
    gone = {full("dpo-2"), full("dpo-unrecorded")} | OF_RUN["1"]
    assert collect(store, 1) == {"1.json", "2.json", "5.json"} | gone


def test_what_a_run_finds_while_garbage_is_collected_stays(store):
    three_runs(store)
    found = find_garbage(store, 1, in_a_month())
    step = {"artifact": store.verify(full("expand-2")).model_dump()}
    store.write_note("4", {"name": "4", "state": "running", "steps": [step]})
    left = {each.name for each, why in zip(found, remove_garbage(found), strict=True) if why}
    assert left == OF_RUN["2"] - {full("dpo-2")}
    assert store.verify(full("expand-2"))


def test_the_curves_of_a_training_stay_as_long_as_what_it_made(store):
    three_runs(store)
    for run in "23":
        (store.curves / full(f"dpo-{run}")).mkdir(parents=True)
    collect(store, keep_runs=1)
    assert [each.name for each in store.curves.iterdir()] == [full("dpo-3")]


def test_looking_removes_nothing(store):
    three_runs(store)
    before = sorted(store.keys())
    found = find_garbage(store, 0, in_a_month())
    assert {each.name for each in found} > set(before)
    assert sorted(store.keys()) == before and len(store.records()) == 3


def test_nothing_young_goes_and_nothing_that_something_young_was_made_of(store):
    three_runs(store)
    artifacts = Path(store.root, "artifacts")
    age(artifacts, 10)
    age(Path(store.root, "runs"), 10)
    corpus, whole = store.verify(full("prepare-1")), store.verify(full("expand-2"))
    make(store, "dpo-new", [corpus, whole])
    record(store, "2", store.verify(full("dpo-2")))  # a young record keeps its run
    week = datetime.now(UTC) - 7 * DAY
    gone = collect(store, 0, before=week)
    assert gone == {"1.json", "3.json", full("dpo-unrecorded")} | OF_RUN["1"] | OF_RUN["3"]


def test_an_artifact_that_is_made_again_meanwhile_stays(store):
    made = make(store, "expand-1")
    age(Path(store.root, "artifacts"), 10)
    [garbage] = find_garbage(store, None, datetime.now(UTC) - DAY)
    assert make(store, "expand-1") == made
    garbage.remove()
    assert store.lookup(full("expand-1")) == made


def test_a_record_of_an_older_version_is_understood():
    artifact = {"key": full("expand-1"), "digest": "d"}
    assert needs_of({"steps": [["expand the queries", artifact]]}, "runs/1.json") == [artifact]


def test_a_record_that_cannot_be_read_stops_it(store):
    three_runs(store)
    Path(store.root, "runs", "2.json").write_text("{")
    with pytest.raises(DataError, match=r"runs/2\.json"):
        find_garbage(store, 2, in_a_month())
    assert collect(store, 1)  # what the dropped one needed does not matter


RECORDS = {
    "an empty object": "{}",
    "no object": "[]",
    "nothing": "",
    "no steps": '{"name": "2"}',
    "steps of another type": '{"name": "2", "steps": {"a": 1}}',
    "a step without an artifact": '{"name": "2", "steps": [{"title": "a title"}]}',
    "an artifact without a key": '{"name": "2", "steps": [{"artifact": {"digest": "0"}}]}',
    "a key that is none": '{"name": "2", "steps": [{"artifact": {"key": "x", "digest": "0"}}]}',
    "deep": "[" * 100_000,
    "another encoding": '{"name": "\xe9", "steps": []}',
}


@pytest.mark.parametrize("folder", ["runs", "begun"])
@pytest.mark.parametrize("text", RECORDS.values(), ids=RECORDS)
def test_a_record_that_is_not_understood_stops_it_and_takes_nothing(store, folder, text):
    three_runs(store)
    Path(store.root, folder).mkdir(exist_ok=True)
    Path(store.root, folder, "2.json").write_text(text, encoding="latin-1")
    before = sorted(Path(store.root).rglob("*"))
    command = ["gc", "--older-than", "0d", "--delete", "--store", store.url]
    age(Path(store.root, "runs"), 1)
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 2 and f"{folder}/2.json" in said.output, said.output
    assert sorted(Path(store.root).rglob("*")) == before


def test_it_says_what_it_did_and_not_what_it_meant(store, monkeypatch):
    three_runs(store)
    remove = Store.remove

    def remove_or_fail(store: Store, key: str) -> None:
        if key == full("dpo-1"):
            raise PermissionError(13, "Permission denied", key)
        remove(store, key)

    monkeypatch.setattr(Store, "remove", remove_or_fail)
    command = ["gc", "--keep-runs", "1", "--older-than", "0d", "--delete", "--store", store.url]
    said = CliRunner().invoke(app, command)
    assert f"left: artifact {full('dpo-1')}: [Errno 13] Permission denied" in said.output
    assert "removed: 2 x run, 8 x artifact" in said.output
    assert store.keys("dpo-") == sorted([full("dpo-1"), full("dpo-3")])


def test_what_dead_work_left_goes(store):
    folder = Path(store.root, "artifacts", ".expand-1.abc")
    folder.mkdir(parents=True)
    (folder / "file").write_text("half")
    with pytest.raises(KeyboardInterrupt), store.lock(full("expand-2")) as work:
        (work / "checkpoint").write_text("half")
        raise KeyboardInterrupt
    with store.lock(full("expand-3")) as work:
        (work / "checkpoint").write_text("half")
        assert collect(store, None) >= {".expand-1.abc", full("expand-2")}
        assert (work / "checkpoint").exists()  # its holder lives
    assert not folder.exists()
    assert collect(store, None) == {full("expand-3")}


def test_what_dead_work_left_on_s3_goes(remote, s3, tmp_path):
    name = {"Bucket": "bucket", "Key": "some/prefix/artifacts/expand-9/0123/large"}
    s3.client.create_multipart_upload(**name)
    unfinished = f"some/prefix/artifacts/{full('expand-8')}/0123/a"
    s3.client.put_object(**name | {"Key": unfinished}, Body=b"half")
    s3.client.put_object(**name | {"Key": "some/prefix/locks/expand-9"}, Body=b"{}")
    first = put(remote, KEY, {"a": "1"})
    put(remote, KEY, {"a": "2"})
    record(remote, "1", first)
    elsewhere = Store(remote.url, tmp_path / "elsewhere")
    replaced = f"{KEY}/{first.digest[:12]}/a"
    assert collect(elsewhere, None) == {
        "artifacts/expand-9/0123/large",
        full("expand-8"),
        "expand-9",
        replaced,
    }
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket="bucket")
    assert collect(elsewhere, None) == set()
    made = elsewhere.lookup(KEY)
    assert made and (elsewhere.local(made) / "a").read_text() == "2"
    assert collect(remote, None) == set()
    assert collect(elsewhere, None) == {KEY}  # the download, which this process uses
    assert (elsewhere.local(made) / "a").exists()


@settings(max_examples=25)
@given(data=st.data(), keep=st.integers(0, 4))
def test_every_step_of_a_kept_run_is_whole_afterwards(tmp_path_factory, data, keep):
    store = Store(str(tmp_path_factory.mktemp("store")))
    made: list[Artifact] = []
    for number in range(data.draw(st.integers(1, 8))):
        some = st.lists(st.sampled_from(made), max_size=3) if made else st.just([])
        made.append(make(store, f"stage-{number}", data.draw(some), data.draw(some)))
    for run in range(data.draw(st.integers(0, 4))):
        record(store, str(run), *data.draw(st.lists(st.sampled_from(made), max_size=3)))
    runs = store.records()
    collect(store, keep)
    assert store.records() == runs[len(runs) - min(keep, len(runs)) :]
    needed = [Artifact(**step["artifact"]) for run in store.records() for step in run["steps"]]
    while needed:
        each = needed.pop()
        manifest = store.manifest(each.key)
        assert store.verify(each.key).digest == each.digest
        needed += [Artifact(**input_) for input_ in manifest["inputs"].values()]


def test_the_command_line_lists_and_removes_only_when_told(store):
    three_runs(store)
    command = ["gc", "--keep-runs", "1", "--older-than", "0d", "--store", store.url]
    listed = CliRunner().invoke(app, command)
    assert listed.exit_code == 0 and full("dpo-unrecorded") in listed.output
    assert "would be removed: 2 x run, 9 x artifact" in listed.output
    assert len(store.keys()) == 14
    removed = CliRunner().invoke(app, [*command, "--delete"])
    assert "removed: 2 x run, 9 x artifact" in removed.output
    assert len(store.keys()) == 5
    for age in ("3 days", "110000w", "9999999999d"):  # the latter are before the year 1
        wrong = CliRunner().invoke(app, [*command, "--older-than", age])
        assert wrong.exit_code == 2 and f"'{age}' is not an age" in wrong.output
    oldest = CliRunner().invoke(app, [*command, "--older-than", "99999w"])
    assert oldest.exit_code == 0
