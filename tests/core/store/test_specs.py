"""Specifications on their way to a worker: named by content, read back, and removed in time."""

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from store_keys import full

from expandr_core.errors import DataError
from expandr_core.store.artifacts import Artifact, StageSpec
from expandr_core.store.garbage import find_garbage, remove_garbage
from expandr_core.store.specs import SPECS, read_spec, write_spec
from expandr_core.store.store import Store

QUERIES = Artifact(key=full("prepare-1"), digest="0" * 64, files={"a": "1" * 64}, counts={"n": 1})
SPEC = StageSpec(
    stage="merge", version=1, options={"a": [1, None, "é"]}, runtime={"prefect_flow_run": "one"},
    inputs={"queries": QUERIES}, sources={"b": "2" * 64}, max_shards=2,
)  # fmt: skip


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path) -> Store:
    if request.param == "s3":
        return request.getfixturevalue("remote")
    return Store(str(tmp_path / "store"))


def test_what_is_written_is_read(store):
    name = write_spec(store, SPEC)
    assert read_spec(store, name) == SPEC
    assert write_spec(store, SPEC) == name and name.startswith(f"{SPEC.key}.")


def test_runs_that_ask_for_one_artifact_in_different_ways_have_a_file_each(store):
    other = SPEC.model_copy(update={"runtime": {"prefect_flow_run": "two", "fresh": True}})
    assert other.key == SPEC.key
    names = [write_spec(store, each) for each in (SPEC, other)]
    assert [read_spec(store, name) for name in names] == [SPEC, other]


def test_a_specification_that_is_gone_says_what_to_do(store):
    with pytest.raises(DataError, match="retry the run that started it"):
        read_spec(store, f"{SPEC.key}.0123456789ab")


def test_a_specification_that_was_changed_is_refused(tmp_path):
    store = Store(str(tmp_path))
    name = write_spec(store, SPEC)
    path = tmp_path / SPECS / f"{name}.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DataError, match="delete the file"):
        read_spec(store, name)


@pytest.mark.parametrize(("days", "stays"), [(0, True), (1.9, True), (2.1, False)])
def test_it_goes_when_no_step_can_still_wait_for_it(tmp_path, days, stays):
    store = Store(str(tmp_path))
    name = write_spec(store, SPEC)
    path = Path(tmp_path, SPECS, f"{name}.json")
    os.utime(path, (0, time.time() - days * 24 * 3600))
    remove_garbage(find_garbage(store, None, datetime.now(UTC) + timedelta(days=1)))
    assert path.exists() == stays
