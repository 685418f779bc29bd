"""Two runs of the loop are compared, in the terminal and as a table in Prefect."""

import json

import pytest
import tiny_loop
from typer.testing import CliRunner

from expandr_cli.main import app
from expandr_core.errors import DataError
from flows.compare_runs import TABLE, compare_runs, find_all


@pytest.fixture
def other_beta(store) -> str:
    """Another run in a copy of the first run's store, with another beta."""
    from flows.joint_loop import joint_loop

    dpo = tiny_loop.OPTIONS.dpo.model_copy(update={"beta": 5.0})
    return joint_loop(
        options=tiny_loop.OPTIONS.model_copy(update={"dpo": dpo}), store=str(store)
    ).name


def test_two_runs_that_differ_in_an_option_are_told_apart_by_it_alone(first, store, other_beta):
    said = CliRunner().invoke(
        app, ["compare", first.record.name, other_beta, "--json", "--store", str(store)]
    )
    assert said.exit_code == 0, said.output
    found = json.loads(said.output)
    assert found["differ"][other_beta] == {"options": {"dpo.beta": [0.1, 5.0]}, "code": {}}
    for row in found["rows"]:
        for each in row["upstream"]:
            assert each.keys() == {"run", "options", "first"}
            assert each["options"] == {"dpo.beta": [0.1, 5.0]}
    shown = CliRunner().invoke(
        app, ["compare", first.record.name, other_beta, "--store", str(store)]
    )
    assert "dpo.beta: 0.1 → 5.0" in shown.output
    _leaves_a_table(first.record.name, other_beta, str(store))


def _leaves_a_table(one: str, other: str, store: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    compare_runs(runs=(one, other), stores=(store,))
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[TABLE]))
        [artifact] = client.read_artifacts(artifact_filter=wanted)
    rows = json.loads(str(artifact.data))
    assert {"dataset", "system", one, other, f"{other}: test"} <= rows[0].keys()


def test_a_run_that_is_not_there_is_refused_with_those_that_are(first):
    with pytest.raises(DataError, match=f"no finished run 'nope'(.|\n)*{first.record.name}"):
        find_all(["nope"], [first.record.store])


def test_a_name_that_is_given_again_is_the_run_of_the_next_store(first, store):
    stores = [first.record.store, str(store)]
    found = find_all(["latest", "latest", "latest"], stores)
    assert [each.store.url for each in found] == [*stores, stores[1]]
