"""Draining a pool: nothing new begins, and what goes on is waited for."""

import threading
from collections.abc import Iterator
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.states import Cancelling, Completed, Pending, Running, Scheduled

from deployments.pools import drain, set_paused
from expandr_core.errors import DataError

POOL = "gpu-train"


@pytest.fixture(autouse=True)
def resumed(client) -> Iterator[None]:
    yield
    set_paused(client, POOL, False)


def begin(client: SyncPrefectClient, *states: State) -> UUID:
    deployment = client.read_deployment_by_name(f"stage/{POOL}").id
    parameters = {"title": "train", "spec": "dpo-0.0", "store": "/shared/store", "shares": False}
    parameters |= {"about": {"stage": "dpo"}}
    run = client.create_flow_run_from_deployment(deployment, parameters=parameters, name="training")
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)
    return run.id


def end(run: UUID) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run, Completed(), force=True)


@pytest.mark.parametrize("states", [[Pending()], [Running()], [Running(), Cancelling()]])
def test_a_run_that_goes_on_is_waited_for(client, states):
    run = begin(client, *states)
    told: list[str] = []

    def report(line: str) -> None:
        told.append(line)
        if len(told) == 1:
            threading.Thread(target=end, args=[run]).start()

    assert drain(client, POOL, 300, report) == []
    assert client.read_flow_run(run).state_name == "Completed"
    assert told == [f"{POOL}: 1 active (training)", f"{POOL}: 0 active"]
    assert client.read_work_pool(POOL).is_paused


def test_what_waits_to_begin_and_what_has_ended_is_not_waited_for(client):
    waiting, ended = begin(client, Scheduled()), begin(client, Completed())
    assert drain(client, POOL, 300, lambda _: None) == []
    end(waiting)
    end(ended)


def test_runs_of_other_pools_are_not_waited_for(client):
    run = begin(client, Running())
    assert drain(client, "gpu-infer", 300, lambda _: None) == []
    set_paused(client, "gpu-infer", False)
    end(run)


def test_when_the_time_is_up_it_names_what_still_goes_on(client):
    run = begin(client, Running())
    assert [each.id for each in drain(client, POOL, 0, lambda _: None)] == [run]
    end(run)


def test_a_pool_that_does_not_exist_is_named(client):
    with pytest.raises(DataError, match=r"no work pool 'gpu'; there are: .*gpu-train"):
        drain(client, "gpu", 0, lambda _: None)
