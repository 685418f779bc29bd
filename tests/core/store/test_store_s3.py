"""The store on S3, through real HTTP on the loopback: what is found, and what changes are noticed."""

import logging
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from store_keys import full
from store_world import KEY, put, with_parts

from expandr_core.errors import DataError
from expandr_core.store.artifacts import Artifact
from expandr_core.store.store import MANIFEST, DamagedArtifact, Store


def s3_name(s3, key: str, path: str) -> dict[str, str]:
    """Find the object of an artifact's file."""
    found = s3.client.list_objects_v2(Bucket="bucket", Prefix=f"some/prefix/artifacts/{full(key)}/")
    [name] = [each["Key"] for each in found["Contents"] if each["Key"].endswith(f"/{path}")]
    return {"Bucket": "bucket", "Key": name}


def test_s3_gives_back_what_was_committed(remote, tmp_path):
    made = with_parts(remote)
    assert remote.lookup(KEY) == made
    assert remote.lookup(full("expand-2")) is None
    assert remote.keys("expand-") == [KEY]
    assert [part.key for part in remote.shards(made)] == [
        full("expand_shard-0"),
        full("expand_shard-1"),
    ]
    elsewhere = Store("s3://bucket/some/prefix", tmp_path / "another machine")
    assert (elsewhere.local(made) / "whole").read_text() == "w"
    assert elsewhere.local(made.at("whole")).read_text() == "w"
    remote.write_record("1", {"name": "1"})
    assert elsewhere.records() == [{"name": "1"}]


def test_local_and_s3_stores_give_equal_digests(tmp_path, remote):
    assert with_parts(Store(str(tmp_path / "local"))) == with_parts(remote)


def test_only_the_file_that_is_asked_for_is_downloaded(remote):
    made = put(remote, KEY, {"a": "1", "b": "2"})
    path = remote.local(made.at("b"))
    assert [each.name for each in path.parent.iterdir()] == ["b"]


def test_a_download_that_was_changed_on_this_machine_is_repeated(remote):
    made = put(remote, KEY, {"a": "1"})
    (remote.local(made) / "a").write_text("2")
    assert (remote.local(made) / "a").read_text() == "1"


def test_an_object_that_was_overwritten_is_noticed_by_its_etag(remote, s3, caplog):
    made = put(remote, KEY, {"a": "1", "b": "2"})
    s3.client.put_object(**s3_name(s3, KEY, "a"), Body=b"3")  # of the same size
    with caplog.at_level(logging.WARNING, "expandr_core"):
        assert remote.lookup(KEY) is None
    assert "a has changed" in caplog.text
    assert remote.keys() == [KEY]
    assert put(remote, KEY, {"a": "1", "b": "2"}) == made == remote.lookup(KEY)


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (KEY, "whole"),
        (KEY, MANIFEST),
        (full("expand_shard-1"), "rows"),
        (full("expand_shard-1"), MANIFEST),
    ],
)
def test_an_object_that_was_deleted_is_noticed(remote, s3, key, path):
    with_parts(remote)
    s3.client.delete_object(**s3_name(s3, key, path))
    assert remote.lookup(KEY) is None
    assert remote.lookup(full("expand_shard-0")) is not None


def test_files_without_manifest_on_s3_are_nothing(remote, s3):
    s3.client.put_object(Bucket="bucket", Key=f"some/prefix/artifacts/{KEY}/a", Body=b"half")
    assert remote.lookup(KEY) is None
    assert remote.lookup(put(remote, KEY, {"b": "1"}).key)


def test_what_arrives_damaged_is_refused(remote, s3):
    made = put(remote, KEY, {"a": "1"})
    s3.client.put_object(**s3_name(s3, KEY, "a"), Body=b"2")
    with pytest.raises(DamagedArtifact, match="arrived damaged"):
        remote.local(made)


def test_a_missing_bucket_is_the_input_s_fault(s3, tmp_path, monkeypatch):
    monkeypatch.setattr("expandr_core.store.s3.RETRY_FOR", 0.5)
    with pytest.raises(DataError, match="no such bucket"):
        Store("s3://nobody-has-this/prefix", tmp_path)


def test_without_credentials_the_input_s_fault_is_said(s3, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"S3 cannot be asked.*credentials"):
        Store("s3://bucket/prefix", tmp_path)


def test_a_bucket_that_is_gone_is_never_a_missing_artifact(remote, s3, monkeypatch):
    made = put(remote, KEY, {"a": "1"})
    for each in s3.client.list_objects_v2(Bucket="bucket")["Contents"]:
        s3.client.delete_object(Bucket="bucket", Key=each["Key"])
    s3.client.delete_bucket(Bucket="bucket")
    monkeypatch.setattr("expandr_core.store.s3.RETRY_FOR", 0.5)
    for ask in (remote.lookup, remote.manifest, remote.keys):
        with pytest.raises(OSError, match=r"NoSuchBucket|does not exist") as error:
            ask(made.key)
        assert not isinstance(error.value, FileNotFoundError)


def test_an_unreachable_server_is_an_error_and_never_a_missing_artifact(
    proxy, remote, tmp_path, monkeypatch
):
    monkeypatch.setattr("expandr_core.store.s3.RETRY_FOR", 0.5)
    made = put(remote, KEY, {"a": "1"})
    for use in (
        lambda: remote.lookup(KEY),
        lambda: remote.lookup(full("expand-2")),
        lambda: remote.local(made),
        lambda: put(remote, "expand-3", {"a": "1"}),
        lambda: remote.keys(),
        lambda: Store("s3://bucket/other", tmp_path),
    ):
        refused = proxy.failing("refused")
        with refused, pytest.raises(OSError, match="S3 has failed for") as error:
            use()
        assert not isinstance(error.value, FileNotFoundError)  # so it is retried


def test_equal_bytes_made_again_are_not_sent_again(remote, s3):
    enabled = {"Status": "Enabled"}
    s3.client.put_bucket_versioning(Bucket="bucket", VersioningConfiguration=enabled)
    put(remote, KEY, {"a": "1"}, created="2026-01-01T00:00:00+00:00")
    made = put(remote, KEY, {"a": "1"}, created="2026-01-02T00:00:00+00:00")
    assert remote.manifest(KEY)["created"].startswith("2026-01-02")
    assert remote.lookup(KEY) == made
    versions = s3.client.list_object_versions(Bucket="bucket")["Versions"]
    assert len([each for each in versions if each["Key"].endswith("/a")]) == 1
    assert len([each for each in versions if each["Key"].endswith(MANIFEST)]) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from expandr_core.store.store import Store
store = Store(sys.argv[1], sys.argv[2])
folder = Path(sys.argv[2], "out")
folder.mkdir()
(folder / "a").write_text("other")
(folder / "b").write_text("other")
store.filesystem.pipe_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
store.commit("KEY", folder, [], {"counts": {}})
""".replace("KEY", KEY)


@pytest.mark.parametrize("text", ["1", "other"], ids=["other bytes", "equal bytes"])
def test_until_an_artifact_is_made_again_the_former_is_whole(remote, tmp_path, text):
    former = put(remote, KEY, {"a": text, "b": text})
    command = [sys.executable, "-c", KILLED, remote.url, str(tmp_path / "another machine")]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert remote.lookup(KEY) == former
    assert (remote.local(former) / "a").read_text() == text


def test_what_two_machines_make_at_once_is_whole_and_of_one_of_them(remote, tmp_path):
    machines = [Store(remote.url, tmp_path / name) for name in "01"]

    def make(number: int) -> Artifact:
        return put(machines[number], KEY, {name: f"{number}" * 50 for name in "abcdef"})

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(make, (0, 1)))
        found = remote.lookup(KEY)
        assert found in made
        assert len({path.read_text() for path in remote.local(found).iterdir()}) == 1
        remote.remove(KEY)


def test_a_large_file_travels_in_parts(remote, tmp_path, monkeypatch, s3):
    monkeypatch.setattr("expandr_core.store.s3._PART", 5 << 20)
    content = "expand " * (3 << 20)  # 21 MiB
    made = put(remote, KEY, {"large": content})
    assert s3.client.head_object(**s3_name(s3, KEY, "large"))["ETag"].endswith('-5"')
    assert (remote.local(made) / "large").read_text() == content


def test_damaged_parts_of_many_are_found_and_stay(remote, s3):
    parts = [put(remote, f"expand_shard-{n:02}", {"rows": f"{n}"}) for n in range(40)]
    made = put(remote, KEY, {"whole": "w"}, parts)
    assert remote.verify(KEY) == made
    for key in (full("expand_shard-07"), full("expand_shard-31")):
        s3.client.put_object(**s3_name(s3, key, "rows"), Body=b"x")
    assert remote.lookup(KEY) is None
    assert len(remote.keys("expand_shard")) == 40


def test_a_store_is_a_folder_or_on_s3(tmp_path):
    with pytest.raises(DataError, match="a store is a folder or s3"):
        Store("memory://bucket", tmp_path)


def test_brackets_in_a_store_s_name_are_no_pattern(s3, tmp_path):
    plain, bracketed = (
        Store(f"s3://bucket/{name}", tmp_path / name) for name in ("stores1", "stores[1]")
    )
    for store in (plain, bracketed):
        put(store, KEY, {"x": "x"})
    bracketed.remove(KEY)
    left = [each["Key"] for each in s3.client.list_objects_v2(Bucket="bucket")["Contents"]]
    assert [name.split("/")[0] for name in left if name.endswith("/x")] == ["stores1"]
