"""Runs that an earlier version recorded stay readable, whatever its options were called."""

import json
from pathlib import Path

import pytest
from recorded_store import RUN, unpacked
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.errors import DataError
from expandr_core.lineage.options import changed_options
from expandr_core.store.run_records import SCHEMA, find_recorded, recorded_run
from expandr_core.store.store import Store


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """The recorded store, whose options were called otherwise: as after a renaming."""
    folder = unpacked(tmp_path_factory.mktemp("recorded"))
    path = folder / "runs" / f"{RUN}.json"
    record = json.loads(path.read_text())
    record["options"]["dpo"]["inverse_temperature"] = record["options"]["dpo"].pop("beta")
    record["options"]["query_writing"] = record["options"].pop("expand")
    path.write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["show", RUN], "query_writing.queries_per_shard"),
        (["runs"], "nDCG@10 on test"),
        (["explain", RUN, "joint-1/ndcg@10", "--check"], "query_writing.queries_per_shard"),
        (["compare", RUN, RUN], "every result was made from the same content"),
        (["explain", RUN, "--query", "test-013-look-1"], "judged"),
    ],
)
def test_a_run_with_other_options_is_read(recorded, command, said):
    shown = CliRunner().invoke(app, [*command, "--store", str(recorded)], env={"COLUMNS": "250"})
    assert shown.exit_code == 0, shown.output
    assert said in shown.output


def test_an_empty_query_id_is_no_query(recorded):
    command = ["explain", RUN, "--query", "", "--store", str(recorded)]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 2 and "has no query ''" in said.output


def test_a_record_without_a_number_has_the_first_schema(recorded):
    run = find_recorded(Store(str(recorded)).records(), "latest")
    assert run and run.schema_number == 1
    assert changed_options(run)["dpo.inverse_temperature"] == 0.1
    assert len(run.steps) == 43 and run.steps[0].id.stage == "demo_world"


def test_a_record_of_a_newer_version_is_refused_by_name(recorded):
    [record] = Store(str(recorded)).records()
    with pytest.raises(
        DataError, match=rf"{RUN} was recorded by a newer version \(schema {SCHEMA + 1}"
    ):
        recorded_run(record | {"schema": SCHEMA + 1})


def test_the_oldest_records_have_pairs_for_steps(recorded):
    [record] = Store(str(recorded)).records()
    pairs = [[step["title"], step["artifact"]] for step in record["steps"]]
    assert [step.id.stage for step in recorded_run(record | {"steps": pairs}).steps][:2] == [
        "demo_world",
        "prepare",
    ]
