"""Deploying on a real server: the same again and again, without undoing what people did."""

import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.client.schemas.sorting import AutomationSort, DeploymentSort
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Pending

from deployments.automations import NOTIFICATION_BLOCK, PREFIX
from deployments.changes import Change
from deployments.deploy import deploy
from deployments.plan import POOLS, TAG, VERSION, check_store
from deployments.pools import HEARTBEAT, job_template
from expandr_core.errors import DataError

pytestmark = pytest.mark.usefixtures("deployed")
STORE = "/shared/store"
NOTHING = {"unchanged", "skipped"}


@pytest.fixture(scope="module")
def deployed(prefect_server) -> None:
    deploy(STORE, reset=True)


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def undone() -> Iterator[None]:
    """Afterwards everything is as the code says."""
    yield
    deploy(STORE, reset=True)


def result(changes: list[Change], name: str) -> str:
    [change] = [change for change in changes if change.name == name]
    return change.result


def read(client: SyncPrefectClient, name: str) -> DeploymentResponse:
    return client.read_deployment_by_name(name)


def snapshot(client: SyncPrefectClient) -> Any:
    """Everything that deploying could touch, the times of change included."""
    deployments = client.read_deployments(sort=DeploymentSort.NAME_ASC, limit=200)
    automations = client.read_automations(sort=AutomationSort.NAME_ASC, limit=200)
    return (
        [client.read_work_pool(name).model_dump(exclude={"status"}) for name in POOLS],
        [each.model_dump(exclude={"status", "last_polled"}) for each in deployments],
        [each.model_dump() for each in automations],
    )


def test_the_second_time_changes_nothing(client):
    before = snapshot(client)
    changes = deploy(STORE)
    assert {change.result for change in changes} <= NOTHING
    assert snapshot(client) == before
    assert max(Counter((change.kind, change.name) for change in changes).values()) == 1


def test_everything_is_there(client):
    names = {
        f"{client.read_flow(each.flow_id).name}/{each.name}"
        for each in client.read_deployments(sort=DeploymentSort.NAME_ASC, limit=200)
        if TAG in each.tags
    }
    assert names == {
        "joint-loop/manual",
        "joint-loop/weekly",
        "single-stage/manual",
        "evaluate-suite/manual",
        "ablate/manual",
        "compare-runs/manual",
        "stage/cpu",
        "stage/gpu-infer",
        "stage/gpu-train",
    }
    for pool in POOLS:
        assert client.read_work_pool(pool).type == "process"
        assert read(client, f"stage/{pool}").work_pool_name == pool


def test_workers_import_the_flow_from_the_installed_package(client):
    loop = read(client, "joint-loop/manual")
    assert loop.entrypoint == "flows.joint_loop.joint_loop"
    assert loop.path is None
    assert not loop.pull_steps


def test_the_schedule_is_weekly_in_a_time_zone_and_paused_at_first(client, undone):
    weekly = read(client, "joint-loop/weekly")
    client.delete_deployment(weekly.id)
    deploy(STORE, timezone="Europe/Berlin")
    [schedule] = read(client, "joint-loop/weekly").schedules
    assert schedule.schedule == CronSchedule(cron="0 3 * * 0", timezone="Europe/Berlin")
    assert not schedule.active


# What people did stays


def test_what_is_paused_stays_paused(client, undone):
    client.pause_deployment(read(client, "joint-loop/manual").id)
    client.update_work_pool("cpu", WorkPoolUpdate(is_paused=True))
    changes = deploy(STORE + "-elsewhere")  # so that every deployment is really updated
    assert result(changes, "joint-loop/manual") == "updated"
    assert read(client, "joint-loop/manual").paused
    assert client.read_work_pool("cpu").is_paused
    client.resume_deployment(read(client, "joint-loop/manual").id)
    client.update_work_pool("cpu", WorkPoolUpdate(is_paused=False))


@pytest.mark.parametrize("active", [True, False])
def test_a_schedule_stays_in_the_state_it_was_left_in(client, undone, active):
    weekly = read(client, "joint-loop/weekly")
    nightly = CronSchedule(cron="0 1 * * *", timezone="UTC")
    client.update_deployment_schedule(
        weekly.id, weekly.schedules[0].id, active=active, schedule=nightly
    )
    deploy(STORE + "-elsewhere")
    [schedule] = read(client, "joint-loop/weekly").schedules
    assert (schedule.id, schedule.active) == (weekly.schedules[0].id, active)
    assert schedule.schedule == nightly


def test_reset_takes_timing_and_parameters_back(client):
    weekly = read(client, "joint-loop/weekly")
    nightly = CronSchedule(cron="0 1 * * *", timezone="UTC")
    client.update_deployment_schedule(weekly.id, weekly.schedules[0].id, schedule=nightly)
    client.update_deployment(weekly.id, DeploymentUpdate(parameters={"preset": "tiny"}))
    deploy(STORE, reset=True)
    after = read(client, "joint-loop/weekly")
    assert after.schedules[0].schedule == CronSchedule(cron="0 3 * * 0", timezone="UTC")
    assert after.parameters == weekly.parameters


def test_a_schedule_that_left_the_code_goes_and_one_that_somebody_made_stays(client):
    weekly = read(client, "joint-loop/weekly").id
    hourly = IntervalSchedule(interval=timedelta(hours=1))
    client.create_deployment_schedules(
        weekly,
        [
            DeploymentScheduleCreate(schedule=hourly, slug="expandr-hourly", active=True),
            DeploymentScheduleCreate(schedule=hourly, active=True, parameters={"preset": "tiny"}),
            DeploymentScheduleCreate(schedule=hourly, slug="mine"),
        ],
    )
    changes = deploy(STORE)
    assert result(changes, "joint-loop/weekly expandr-hourly") == "removed"
    left = {each.slug: each for each in read(client, "joint-loop/weekly").schedules}
    assert left.keys() == {"expandr-weekly", "mine", None}
    assert left[None].active and left[None].parameters == {"preset": "tiny"}
    for slug in ("mine", None):
        client.delete_deployment_schedule(weekly, left[slug].id)


def test_the_form_stays_as_somebody_set_it_but_for_the_store(client, undone):
    weekly = read(client, "joint-loop/weekly").id
    theirs = {"preset": "none", "options": {"seed": 3}, "store": "/old"}
    client.update_deployment(weekly, DeploymentUpdate(parameters=theirs))
    deploy(STORE)
    assert read(client, "joint-loop/weekly").parameters == {**theirs, "store": STORE}


def test_a_pool_keeps_its_limit_and_its_job_template(client):
    template = client.read_work_pool("gpu-train").base_job_template
    theirs = json.loads(json.dumps(template))
    theirs["variables"]["properties"]["stream_output"]["default"] = False
    client.update_work_pool(
        "gpu-train", WorkPoolUpdate(concurrency_limit=3, base_job_template=theirs)
    )
    assert result(deploy(STORE), "gpu-train") == "kept"
    pool = client.read_work_pool("gpu-train")
    assert (pool.concurrency_limit, pool.base_job_template) == (3, theirs)
    client.update_work_pool("gpu-train", WorkPoolUpdate(concurrency_limit=None))
    deploy(STORE, reset=True)
    assert client.read_work_pool("gpu-train").base_job_template == template


def test_deployments_that_left_the_code_go_and_copies_stay(client):
    loop = read(client, "joint-loop/manual")
    client.create_deployment(loop.flow_id, "old", version=VERSION, tags=[TAG])
    client.create_deployment(loop.flow_id, "copy", tags=[TAG])  # as the UI's "Duplicate" makes it
    changes = deploy(STORE, prune=False)
    assert not [change for change in changes if change.result == "removed"]
    assert result(deploy(STORE), "joint-loop/old") == "removed"
    names = {each.name for each in client.read_deployments(sort=DeploymentSort.NAME_ASC, limit=200)}
    assert "copy" in names and "old" not in names
    client.delete_deployment(read(client, "joint-loop/copy").id)


# Heartbeats


def environment_of(client: SyncPrefectClient, pool: str) -> dict[str, Any]:
    template = client.read_work_pool(pool).base_job_template
    return template["variables"]["properties"]["env"]["default"]


def set_environment(client: SyncPrefectClient, pool: str, environment: dict[str, Any]) -> None:
    template = client.read_work_pool(pool).base_job_template
    template["variables"]["properties"]["env"]["default"] = environment
    client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template))


def test_a_pool_from_before_lets_its_jobs_send_heartbeats_and_keeps_the_rest(client, undone):
    client.update_work_pool("gpu-infer", WorkPoolUpdate(base_job_template={}))
    set_environment(client, "cpu", {"THEIRS": "1"})
    changes = deploy(STORE)
    assert (result(changes, "cpu"), result(changes, "gpu-infer")) == ("updated", "updated")
    assert environment_of(client, "cpu") == {"THEIRS": "1", HEARTBEAT: "30"}
    assert client.read_work_pool("gpu-infer").base_job_template == job_template("process", "cpu")
    assert {change.result for change in deploy(STORE)} <= {*NOTHING, "kept"}


def test_runs_are_dead_after_three_heartbeats_at_the_earliest(client, undone):
    set_environment(client, "gpu-train", {HEARTBEAT: "100"})
    before = snapshot(client)
    with pytest.raises(DataError, match=r"--dead-after 150: .*'gpu-train' .* give 300 or more"):
        deploy(STORE + "-elsewhere")
    assert snapshot(client) == before
    assert result(deploy(STORE, dead_after=timedelta(seconds=300)), "gpu-train") == "kept"
    assert environment_of(client, "gpu-train") == {HEARTBEAT: "100"}
    with pytest.raises(DataError, match=r"--dead-after 89: .*'cpu' .* give 90 or more"):
        deploy(STORE, reset=True, dead_after=timedelta(seconds=89))
    deploy(STORE, reset=True, dead_after=timedelta(seconds=90))


@pytest.mark.parametrize("wrong", ["often", None, ""])
def test_a_heartbeat_that_is_no_number_is_named(client, undone, wrong):
    set_environment(client, "cpu", {HEARTBEAT: wrong})
    with pytest.raises(DataError, match="work pool 'cpu': PREFECT_FLOWS_HEARTBEAT_FREQUENCY"):
        deploy(STORE)


# Limits


def test_a_second_run_by_schedule_is_cancelled_and_one_by_hand_is_not(client):
    weekly, manual = (read(client, f"joint-loop/{name}") for name in ("weekly", "manual"))
    assert weekly.global_concurrency_limit and weekly.global_concurrency_limit.limit == 1
    assert weekly.concurrency_options
    strategy = weekly.concurrency_options.collision_strategy
    assert strategy == ConcurrencyLimitStrategy.CANCEL_NEW
    assert manual.global_concurrency_limit is None
    begun = {}
    for deployment in (weekly, weekly, manual, manual):
        run = client.create_flow_run_from_deployment(deployment.id)
        client.set_flow_run_state(run.id, Pending())
        begun.setdefault(deployment.name, []).append(client.read_flow_run(run.id).state_type)
    assert begun == {
        "weekly": [StateType.PENDING, StateType.CANCELLED],
        "manual": [StateType.PENDING, StateType.PENDING],
    }


# Automations


def automations(client: SyncPrefectClient) -> dict[str, Automation]:
    found = client.read_automations(sort=AutomationSort.NAME_ASC, limit=200)
    assert len({each.name for each in found}) == len(found)
    return {each.name: each for each in found}


def test_automations_follow_the_code_but_for_being_disabled(client, undone):
    client.pause_automation(automations(client)[PREFIX + "a stuck run is crashed"].id)
    deploy(STORE, dead_after=timedelta(seconds=90))
    found = automations(client)
    dead, stuck = found[PREFIX + "a dead run is crashed"], found[PREFIX + "a stuck run is crashed"]
    assert (dead.trigger.within, dead.enabled) == (timedelta(seconds=90), True)
    assert not stuck.enabled
    client.resume_automation(stuck.id)


def test_automations_of_ours_that_left_the_code_go_and_others_stay(client):
    dead = automations(client)[PREFIX + "a dead run is crashed"]
    for name in (PREFIX + "old", "mine"):
        fields = dead.model_dump(exclude={"id", "name"})
        client.create_automation(AutomationCore(name=name, **fields))
    assert result(deploy(STORE), "old") == "removed"
    assert "mine" in automations(client)
    client.delete_automation(automations(client)["mine"].id)


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """The URL of a webhook, and what it was sent."""
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/secret-token", received
    server.shutdown()


def test_failures_are_told_to_a_webhook_whose_url_stays_secret(client, webhook):
    url, received = webhook
    name, other = "a failure is reported", "a decision about a champion is reported"
    assert result(deploy(STORE), name) == "skipped"
    changes = deploy(STORE, webhook=url)
    assert result(changes, name) == result(changes, other) == "created"
    assert result(deploy(STORE, webhook=url), name) == "unchanged"
    assert result(deploy(STORE), name) == "unchanged"
    [block] = [
        each
        for each in client.read_block_documents(offset=0, limit=200, include_secrets=False)
        if each.name == NOTIFICATION_BLOCK
    ]
    assert "secret-token" not in block.model_dump_json()
    assert "secret-token" not in automations(client)[PREFIX + name].model_dump_json()
    sender: Any = CustomWebhookNotificationBlock.load(NOTIFICATION_BLOCK)
    sender.notify("It failed.", "ExpandR")
    assert received == [("/secret-token", {"text": "ExpandR\nIt failed."})]
    client.delete_block_document(block.id)
    assert result(deploy(STORE), name) == "removed"
    assert PREFIX + name not in automations(client)
    assert result(deploy(STORE), name) == "skipped"


# Refusals


@pytest.mark.parametrize("store", ["", "store", "./store", "s3://key:secret@bucket/prefix"])
def test_a_store_that_workers_cannot_share_is_refused(store):
    with pytest.raises(DataError):
        check_store(store)


def test_a_pool_of_another_type_is_refused(client):
    with pytest.raises(DataError, match="with type process, not docker"):
        deploy(STORE, pool_type="docker")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        (None, "PREFECT_API_URL is not set"),
        ("http://127.0.0.1:9/api", "no Prefect server answers"),
    ],
)
def test_without_a_server_it_says_so(url, complaint):
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(DataError, match=complaint):
        deploy(STORE)


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "PREFECT_API_AUTH_STRING"), (404, "/api"), (502, "proxy")]
)
def test_a_server_that_refuses_is_told_from_one_that_is_down(status, remedy):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(DataError, match=f"status {status}.*{remedy}"),
    ):
        deploy(STORE)
    server.shutdown()
