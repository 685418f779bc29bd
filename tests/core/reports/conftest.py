"""The report of the recorded run, made once."""

import json
from typing import Any

import pytest
from recorded_store import RUN

from expandr_core.reports.pages import pages_of
from expandr_core.reports.report import report_of
from expandr_core.store.run_records import find_recorded


@pytest.fixture(scope="session")
def report(recorded) -> dict[str, Any]:
    """Its data, as report.json has them; do not change it."""
    found = find_recorded(recorded.records(), RUN)
    assert found
    return json.loads(json.dumps(report_of(recorded, found), allow_nan=False))


@pytest.fixture(scope="session")
def pages(report) -> dict[str, str]:
    """Its pages, by file name."""
    return pages_of(report)
