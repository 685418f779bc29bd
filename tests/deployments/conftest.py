"""What the tests of deployments share."""

from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.states import Crashed

from deployments.deploy import deploy
from deployments.pools import active_runs


@pytest.fixture
def client(prefect_server) -> Iterator[SyncPrefectClient]:
    """Deploy everything; runs whose workers other tests have killed no longer count as active."""
    with get_client(sync_client=True) as client:
        deploy("/shared/store")
        for pool in ("gpu-infer", "gpu-train"):
            for run in active_runs(client, pool):
                client.set_flow_run_state(run.id, Crashed(), force=True)
        yield client
