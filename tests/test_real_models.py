"""docs/results.md has the numbers that runs had."""

import os
from pathlib import Path

import pytest

from benchmarks.real_models import check, tables
from expandr_core.store.store import Store

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "results.md"
STORE = os.environ.get("EXPANDR_STUDY_STORE", "")


def test_the_tables_are_those_that_were_recorded():
    text = " ".join(DOCUMENT.read_text().split())
    for table in tables():
        assert " ".join(table.split()) in text


@pytest.mark.skipif(not STORE, reason="EXPANDR_STUDY_STORE names no store with the runs")
def test_the_store_confirms_every_recorded_number():
    assert not check(Store(STORE))
