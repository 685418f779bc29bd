"""An artifact is made again from its manifest alone, in an empty store, with the same digest."""

import json

import pytest

from expandr_core.errors import DataError
from expandr_core.lineage.remake import remake, spec_of
from expandr_core.store.store import Store


def test_every_stage_of_the_loop_makes_the_same_bytes_from_its_manifest(first, tmp_path):
    store = Store(first.record.store, tmp_path / "scratch")
    manifests = Store(str(tmp_path / "manifests"))  # and nothing else
    for key in store.keys(""):
        folder = tmp_path / "manifests" / "artifacts" / key
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(_text(store, key))
    empty = Store(str(tmp_path / "empty"))
    one_of_each = {step.artifact.stage: step.artifact for step in first.record.steps}
    for artifact in one_of_each.values():
        assert remake(manifests, artifact.key, empty).digest == artifact.digest
    assert len(one_of_each) >= 16


def _text(store: Store, key: str) -> str:
    return store.filesystem.cat_file(f"{store.folder(key)}/manifest.json").decode()


def test_a_manifest_of_another_version_is_refused_with_its_commit(first):
    store = Store(first.record.store)
    manifest = json.loads(_text(store, first.artifact("merge", 1).key))
    assert spec_of(manifest).key == manifest["key"]
    with pytest.raises(DataError, match=r"version 99 of the stage 'merge' then, \d+ now"):
        spec_of(manifest | {"version": 99, "seed": 9})
    with pytest.raises(DataError, match="no stage 'merge' with these options"):
        spec_of(manifest | {"options": {"another": 1}})
