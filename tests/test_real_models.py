"""docs/results.md has the numbers that runs had."""

import os
import re
from itertools import chain
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


def sections_of(page: str) -> dict[str, list[str]]:
    """The lines of a page's sections, by the names that links have for them."""
    parts = [part.splitlines() for part in re.split(r"^#+ ", page, flags=re.M) if part.strip()]
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-"): rest for head, *rest in parts}


SECTIONS = sections_of(DOCUMENT.read_text())
RESULTS = sections_of((ROOT / "README.md").read_text())["results"]


@pytest.mark.parametrize("lines", [*SECTIONS.values(), RESULTS], ids=[*SECTIONS, "README"])
def test_numbers_in_running_text_stand_in_a_table_that_is_there_or_linked(lines):
    linked = re.findall(r"\]\([\w./]*#([\w-]+)\)", "\n".join(lines))
    shown = chain(lines, *(SECTIONS.get(name, []) for name in linked))
    known = [float(each) for each in decimals_in([line for line in shown if line[:1] == "|"])]
    said = "\n".join(line for line in lines if not line.startswith(("|", "    ")))
    for number in decimals_in([re.sub(r"`[^`]*`|\]\(.*?\)", "", said)]):
        form = ".0e" if "e" in number else f".{len(number.partition('.')[2])}f"
        assert f"{float(number):{form}}" in {f"{each:{form}}" for each in known}, number


@pytest.mark.skipif(not STORE, reason="EXPANDR_STUDY_STORE names no store with the runs")
def test_the_store_confirms_every_recorded_number():
    assert not check(Store(STORE))
