"""The bar in the terminal: what it says, and that log lines stand above it."""

import pytest
from screen import screen, written_by

PROGRAM = """
import logging, time
from prefect.logging.configuration import setup_logging
from tasks.progress import _bar
setup_logging()
log = logging.getLogger("prefect.flow_runs.probe")
with _bar("evaluate on test: control, + DPO'd expansion, round 1", "step 3 of 40") as report:
    for done in range(4):
        report(done, 4, "queries")
        log.info("line %d: %s", done, "some words that make it longer than a line of it is " * 2)
        time.sleep(0.15)
    with _bar("train [/the] :cat: control", "step 4 of 40") as other:
        other(1, 2, "steps")
        log.info("two at once")
        time.sleep(0.15)
print("the end")
"""


@pytest.fixture(scope="module")
def written() -> str:
    return written_by(PROGRAM)


def test_no_log_line_is_glued_to_a_bar(written):
    lines = screen(written)
    begun = [line for line in lines if " | INFO " in line]
    assert len(begun) == 5
    assert all(line[:2].isdigit() for line in begun)  # each begins with its time
    assert not [line for line in lines if "━" in line or "queries" in line]  # no bar is left behind
    assert lines[-1] == "the end"


def test_the_step_and_the_time_of_the_run_stand_above_the_bars_of_all_stages(written):
    erased = "\r\x1b[2K"
    one = screen(written[: written.rindex(erased, 0, written.index("line 2"))])
    two = screen(written[: written.index(erased, written.index("two at once"))])
    assert one[-2].startswith("step 3 of 40, 0:00:0") and one[-2].endswith(" since the start")
    assert one[-1].startswith("evaluate on test: control") and " queries " in one[-1]
    assert [line[:9] for line in two[-3:]] == ["step 4 of", "evaluate ", "train [/t"]
    assert max(map(len, two[-3:])) <= 80


def test_a_screen_is_drawn_as_a_terminal_does():
    assert screen("abc\rx\n12\x1b[1A\x1b[2Knew\r\n") == ["  new", "12"]
    assert screen("abcdef", 4) == ["abcd", "ef"]
