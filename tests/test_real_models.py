"""docs/results.md has the numbers that runs had."""

import os
import re
from pathlib import Path

import pytest

from benchmarks.real_models import check, tables
from expandr_core.store.store import Store

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "results.md"
STORE = os.environ.get("EXPANDR_STUDY_STORE", "")


def test_the_tables_are_those_that_were_recorded():
    text = " ".join(DOCUMENT.read_text().split())
    for table in tables():
        assert " ".join(table.split()) in text


NUMBER = re.compile(r"(?<![\w.])(?:\d+\.\d+(?:e-?\d+)?|\d+e-\d+)")


def decimals_in(lines: list[str]) -> list[str]:
    return [number for line in lines for number in NUMBER.findall(line)]


RESULTS = (ROOT / "README.md").read_text().partition("\n## Results\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("section", [DOCUMENT.read_text(), RESULTS])
def test_numbers_in_running_text_stand_in_the_tables_too(section):
    known = decimals_in([line for line in DOCUMENT.read_text().splitlines() if line[:1] == "|"])
    said = [line for line in section.splitlines() if not line.startswith(("|", "    "))]
    said = re.sub(r"`[^`]*`|\]\(.*?\)", "", "\n".join(said)).splitlines()
    for number in decimals_in(said):
        form = ".0e" if "e" in number else f".{len(number.partition('.')[2])}f"
        rounded = {f"{float(each):{form}}" for each in known}
        assert f"{float(number):{form}}" in rounded, number


@pytest.mark.skipif(not STORE, reason="EXPANDR_STUDY_STORE names no store with the runs")
def test_the_store_confirms_every_recorded_number():
    assert not check(Store(STORE))
