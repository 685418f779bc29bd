"""Which run `expandr resume` continues: by the names that Prefect and the store have for it."""

import os
import platform
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Running, Scheduled
from rich.console import Console

from expandr_cli.resume import find_flow_run, resume
from expandr_core.errors import DataError
from expandr_core.store.store import Store
from flows.joint_loop import joint_loop


@pytest.mark.usefixtures("prefect_server")
def test_a_run_is_found_by_the_names_that_it_has_and_by_its_store():
    day = timedelta(days=1)
    now = datetime.now(UTC).replace(microsecond=0) + day  # later than what other tests have begun
    with get_client(sync_client=True) as client:

        def begun(name: str, store: str, started: datetime) -> str:
            scheduled = Scheduled(scheduled_time=started)
            run = client.create_flow_run(
                joint_loop, name=name, parameters={"store": store}, state=scheduled
            )
            return str(run.id)

        def found(reference: str, store: str = "") -> str:
            return str(find_flow_run(client, reference, store).id)

        def of(started: datetime) -> str:
            return f"{started:%Y%m%dT%H%M%S}-smart-frog"

        frog = begun("smart-frog", "/a", now)
        namesake = begun("smart-frog", "/b", now + day)
        assert found("smart-frog") == found("latest") == found("smart-frog", "/b") == namesake
        assert found(of(now)) == found(frog) == found("latest", "/a") == frog
        assert found(of(now + day)) == namesake
        for reference, store in (("smart-frog", "/c"), (of(now - day), "")):
            with pytest.raises(DataError, match=f"no run '{reference}' .*{store}"):
                found(reference, store)
        for each in (frog, namesake):
            client.delete_flow_run(UUID(each))


@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_still_runs_here_is_not_continued(tmp_path):
    with get_client(sync_client=True) as client:
        parameters = {"store": str(tmp_path)}
        run = client.create_flow_run(
            joint_loop, name="busy-bee", parameters=parameters, state=Running()
        )
        of_this_process = {"host": platform.node(), "process": os.getpid(), "state": "running"}
        started = {"flow_run_id": str(run.id), "started": datetime.now(UTC).isoformat()}
        note = {"name": "busy-bee", **of_this_process, **started}
        Store(str(tmp_path)).write_note("busy-bee", note)
        with pytest.raises(DataError, match="busy-bee still runs on this machine"):
            resume(Console(quiet=True), "busy-bee", "")
        client.delete_flow_run(run.id)
