"""Stages on pools that have no worker: whose run they wait for, and what they say of it."""

import threading
import time
from collections.abc import Iterator
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.runtime import flow_run
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Failed, Running
from waiting import SECONDS, wait_until

from deployments.apply import apply_deployment
from deployments.plan import Deployment
from deployments.pools import apply_pool
from expandr_core.errors import DataError
from expandr_core.store.artifacts import StageSpec
from expandr_core.store.store import Store
from flows.stage import stage
from tasks.placement import online_workers, run_on_pool
from tasks.pool_runs import BAD_INPUT, PoolError

pytestmark = pytest.mark.usefixtures("prefect_server")
POOLS = ("empty-one", "empty-two")
SPEC = StageSpec(stage="merge", version=1, options={}, runtime={}, inputs={})


def deploy_stage(client: SyncPrefectClient, pool: str) -> None:
    apply_pool(client, pool, "", "process", False)
    apply_deployment(client, Deployment(stage, pool, pool, "", {}), False)


@pytest.fixture
def client(prefect_server) -> Iterator[SyncPrefectClient]:
    """A client of a server with two pools that have no worker, and no run of the flow `stage`."""
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            deploy_stage(client, pool)
        yield client
        for run in stage_runs(client):
            client.delete_flow_run(run.id)


@pytest.fixture(autouse=True)
def often(monkeypatch) -> None:
    """Look more often at what is waited for."""
    monkeypatch.setattr("tasks.placement.POLL_SECONDS", 0.1)
    monkeypatch.setattr("tasks.placement.LOOK_SECONDS", 0.1)


class Parent:
    """A flow that waits for a stage on a pool, in a thread."""

    def __init__(self, store: Store, pool: str, spec: StageSpec = SPEC):
        self.error: BaseException | None = None
        self.id: str = ""

        @flow(name="parent")
        def parent() -> None:
            self.id = str(flow_run.id)
            run_on_pool("a title", spec, store, pool, 8)

        def work() -> None:
            try:
                parent()
            except Exception as error:
                self.error = error

        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()

    def result(self) -> BaseException | None:
        """Wait for its end; return what it raised."""
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        return self.error


def stage_runs(client: SyncPrefectClient) -> list[FlowRun]:
    ours = FlowFilter(name=FlowFilterName(any_=["stage"]))  # a server has other runs by the hundred
    newest = FlowRunSort.EXPECTED_START_TIME_DESC
    runs = client.read_flow_runs(flow_filter=ours, sort=newest, limit=200)
    return [run for run in runs if (run.work_pool_name or "lost") in (*POOLS, "lost")
            and run.name == "a title"]  # fmt: skip


def begun(client: SyncPrefectClient, number: int) -> list[FlowRun]:
    """Wait until so many runs of the flow `stage` are there."""
    wait_until(lambda: len(stage_runs(client)) >= number)
    return stage_runs(client)


def logged(client: SyncPrefectClient, parent: Parent, words: str) -> None:
    """Wait until a run's log says something."""

    def said() -> bool:
        if not parent.id:
            return False
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[UUID(parent.id)]))
        return any(words in line.message for line in client.read_logs(wanted, limit=200))

    wait_until(said)


def end(client: SyncPrefectClient, *parents: Parent) -> None:
    """Let all runs of the flow `stage` end as if their input were at fault, and so the parents."""
    while any(parent.thread.is_alive() for parent in parents):
        for run in stage_runs(client):
            if run.state and not run.state.is_final():
                state = Failed(name=BAD_INPUT, message="the end")
                client.set_flow_run_state(run.id, state, force=True)
        time.sleep(0.5)
    assert [type(parent.error) for parent in parents] == [DataError] * len(parents)


def test_a_run_that_waits_for_another_pool_or_fills_another_store_is_not_shared(client, tmp_path):
    stores = [Store(str(tmp_path / name)) for name in ("one", "two")]
    places = [(stores[0], POOLS[0]), (stores[0], POOLS[1]), (stores[1], POOLS[1])]
    parents = []
    for number, (store, pool) in enumerate(places, 1):
        parents.append(Parent(store, pool))
        begun(client, number)
    found = {(run.parameters["store"], run.work_pool_name) for run in stage_runs(client)}
    assert found == {(store.url, pool) for store, pool in places}
    end(client, *parents)


def test_two_parents_of_the_same_stage_share_its_run(client, tmp_path):
    store = Store(str(tmp_path))
    first = Parent(store, POOLS[0])
    begun(client, 1)
    second = Parent(store, POOLS[0])
    logged(client, second, "attached to run")
    assert len(stage_runs(client)) == 1
    end(client, first, second)


def test_a_run_that_was_deleted_with_its_deployment_is_begun_again(client, tmp_path):
    parent = Parent(Store(str(tmp_path)), POOLS[0])
    [run] = begun(client, 1)
    client.delete_deployment(client.read_deployment_by_name(f"stage/{POOLS[0]}").id)
    assert str(f"there is no deployment 'stage/{POOLS[0]}'; `expandr deploy`") in str(
        parent.result()
    )
    deploy_stage(client, POOLS[0])
    parent = Parent(Store(str(tmp_path)), POOLS[0])
    [run] = begun(client, 1)
    client.delete_flow_run(run.id)
    [again] = begun(client, 1)
    assert again.id != run.id
    end(client, parent)


def test_a_pool_that_was_deleted_since_it_was_read_is_named(client):
    with pytest.raises(DataError, match=r"there is no work pool 'lost'; `expandr deploy`"):
        online_workers(client, "lost")


def test_a_run_whose_pool_was_deleted_is_begun_again_when_the_pool_is_back(client, tmp_path):
    store = Store(str(tmp_path))
    lost = Parent(store, POOLS[0])
    begun(client, 1)
    client.delete_work_pool(POOLS[0])
    assert "`expandr deploy`" in str(lost.result())
    assert "there is no work pool 'empty-one'" in str(Parent(store, POOLS[0]).result())
    apply_pool(client, POOLS[0], "", "process", False)  # the deployment is still on no pool
    assert "not on work pool 'empty-one'; `expandr" in str(Parent(store, POOLS[0]).result())
    deploy_stage(client, POOLS[0])
    parent = Parent(store, POOLS[0])
    wait_until(lambda: any(run.work_pool_name == POOLS[0] for run in stage_runs(client)))
    end(client, parent)


@pytest.mark.parametrize("states", [[Cancelled()], [Running(), Cancelling()], [Completed()]])
def test_a_run_that_has_ended_or_is_being_cancelled_is_not_found_again(client, tmp_path, states):
    store = Store(str(tmp_path))
    first = Parent(store, POOLS[0])
    [run] = begun(client, 1)
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)
    second = Parent(store, POOLS[0])
    begun(client, 2)
    if not states[-1].is_final():
        client.set_flow_run_state(run.id, Cancelled(), force=True)
    error = first.result()
    assert (error is None) == states[-1].is_completed()
    assert error is None or isinstance(error, PoolError)
    end(client, second)


def test_a_cancelled_run_that_waits_to_be_retried_is_found_again(client, tmp_path):
    store = Store(str(tmp_path))
    first = Parent(store, POOLS[0])
    [run] = begun(client, 1)
    client.set_flow_run_state(run.id, Cancelled(), force=True)
    assert isinstance(first.result(), PoolError)
    client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    second = Parent(store, POOLS[0])
    logged(client, second, "attached to run")
    assert [each.id for each in stage_runs(client)] == [run.id]
    end(client, second)


def test_who_waits_for_a_pool_without_a_worker_is_told_how_to_start_one(client, tmp_path):
    parent = Parent(Store(str(tmp_path)), POOLS[0])
    logged(client, parent, f"prefect worker start --pool {POOLS[0]}")
    client.update_work_pool(POOLS[0], WorkPoolUpdate(is_paused=True))
    logged(client, parent, f"expandr drain --resume {POOLS[0]}")
    client.update_work_pool(POOLS[0], WorkPoolUpdate(is_paused=False))
    end(client, parent)
