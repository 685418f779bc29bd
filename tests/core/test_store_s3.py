"""The store on S3, through real HTTP on the loopback: what is found, and what changes are noticed."""

import logging

import pytest
from store_world import KEY, put, with_parts

from expandr_core.errors import DataError
from expandr_core.store import MANIFEST, DamagedArtifact, Store


def s3_name(s3, key: str, path: str) -> dict[str, str]:
    """Find the object of an artifact's file."""
    found = s3.client.list_objects_v2(Bucket="bucket", Prefix=f"some/prefix/artifacts/{key}/")
    [name] = [each["Key"] for each in found["Contents"] if each["Key"].endswith(f"/{path}")]
    return {"Bucket": "bucket", "Key": name}


def test_s3_gives_back_what_was_committed(remote, tmp_path):
    made = with_parts(remote)
    assert remote.lookup(KEY) == made
    assert remote.lookup("expand-2") is None
    assert remote.keys("expand-") == [KEY]
    assert [part.key for part in remote.parts(made)] == ["expand_shard-0", "expand_shard-1"]
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
    assert remote.keys() == []
    assert put(remote, KEY, {"a": "1", "b": "2"}) == made == remote.lookup(KEY)


@pytest.mark.parametrize(
    ("key", "path"),
    [(KEY, "whole"), (KEY, MANIFEST), ("expand_shard-1", "rows"), ("expand_shard-1", MANIFEST)],
)
def test_an_object_that_was_deleted_is_noticed(remote, s3, key, path):
    with_parts(remote)
    s3.client.delete_object(**s3_name(s3, key, path))
    assert remote.lookup(KEY) is None
    assert remote.lookup("expand_shard-0") is not None


def test_files_without_manifest_on_s3_are_nothing(remote, s3):
    s3.client.put_object(Bucket="bucket", Key=f"some/prefix/artifacts/{KEY}/a", Body=b"half")
    assert remote.lookup(KEY) is None
    assert remote.lookup(put(remote, KEY, {"b": "1"}).key)


def test_what_arrives_damaged_is_refused(remote, s3):
    made = put(remote, KEY, {"a": "1"})
    s3.client.put_object(**s3_name(s3, KEY, "a"), Body=b"2")
    with pytest.raises(DamagedArtifact, match="arrived damaged"):
        remote.local(made)


def test_a_missing_bucket_is_the_input_s_fault(s3, tmp_path):
    with pytest.raises(DataError, match="no such bucket"):
        Store("s3://nobody-has-this/prefix", tmp_path)


def test_an_unreachable_server_is_an_error_and_never_a_missing_artifact(
    remote, s3, tmp_path, monkeypatch
):
    monkeypatch.setattr("expandr_core.s3.PATIENCE", 0.5)
    made = put(remote, KEY, {"a": "1"})
    s3.stop()
    for use in (
        lambda: remote.lookup(KEY),
        lambda: remote.lookup("expand-2"),
        lambda: remote.local(made),
        lambda: put(remote, "expand-3", {"a": "1"}),
        lambda: remote.keys(),
        lambda: Store("s3://bucket/other", tmp_path),
    ):
        with pytest.raises(OSError, match="S3 has failed for") as error:
            use()
        assert not isinstance(error.value, FileNotFoundError)  # so it is retried
