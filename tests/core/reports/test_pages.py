"""The pages of a report hold together, whatever a model has written and wherever they are looked at."""

import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from expandr_core.reports.figures import figures_of
from expandr_core.reports.histograms import histograms
from expandr_core.reports.pages import pages_of

HOSTILE = (
    "<script>alert(1)</script>",
    "</bdi></p><img src=x onerror=alert(1)>",
    "a | b\n\n# no heading | {{ run.name }} $x$ `code`",
    "\u202e\u05d0\u05d1\u05d2 right to left \u2066",
    "w" * 10_000,
)


@pytest.fixture(scope="module")
def hostile(report) -> dict[str, str]:
    """The pages of a run whose queries, expansions, passages and titles are hostile."""
    changed = copy.deepcopy(report)
    rows = changed["queries"]["best"] + changed["queries"]["worst"]
    for number, row in enumerate(rows):
        text = HOSTILE[number % len(HOSTILE)]
        held = {"text": text[:3000], "characters": len(text), "cut": len(text) > 3000}
        row["query"] = row["top_before"][0]["text"] = held
        row["expansions_after"] = [held]
    changed["systems"][0]["title"] = changed["tests"][0]["question"] = HOSTILE[0]
    changed["run"]["data"] = HOSTILE[1]
    changed["options"]["changed"]["data.collection"] = HOSTILE[2]
    return pages_of(changed)


class Tags(HTMLParser):
    """Collects tags, ids, and what a page would load."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.loaded += [values[name] for name in ("src", "href", "xlink:href") if values.get(name)]


def test_the_page_loads_nothing_and_runs_nothing(pages):
    found = Tags(pages["report.html"])
    assert not {"script", "iframe", "img"} & set(found.tags)
    assert {each for each in found.loaded if not each.startswith("#")} == {"data:,"}
    assert len(found.ids) == len(set(found.ids))
    assert len(pages["report.html"].encode()) < 3_000_000


def test_every_picture_has_a_title_axes_and_a_caption_with_numbers(pages):
    pictures = re.findall(r"<figure id=.*?</figure>", pages["report.html"], re.S)
    assert len(pictures) >= 8
    for picture in pictures:
        assert "<title" in picture and "<desc" in picture
        assert "n = " in picture
        assert re.search(r"<figcaption>\S", picture)


def test_differences_by_dataset_are_those_from_the_baseline(report):
    changed, counts = copy.deepcopy(report), []
    for each in ("systems", "tests"):
        changed[each] += [row | {"dataset": "another"} for row in changed[each]]
    asked = [test for test in changed["tests"] if test["before"] != "query"]
    assert asked
    for left_out in ([], asked):
        tests = [test for test in changed["tests"] if test not in left_out]
        counts.append(figures_of(changed | {"tests": tests})["datasets"].svg.count("<use"))
    assert counts[0] == counts[1]


def test_lengths_that_are_all_equal_are_said_and_not_drawn(report):
    changed = copy.deepcopy(report)
    changed["distributions"]["tokens"] = histograms({"start": np.full(300, 32.0)})
    drawn, said = (figures_of(each)["tokens"] for each in (report, changed))
    assert "<svg" in drawn.svg and not said.svg
    assert said.caption == (
        "Lengths of the expansions are all equal: 32 (tokens; n = 300 expansions)."
    )


def test_options_that_were_set_are_told_below_and_not_in_the_head(report):
    changed = copy.deepcopy(report)
    changed["run"]["set"], changed["counts"]["set"] = ["dpo.beta=0.2", "seed=1"], 2
    head, _, rest = pages_of(changed)["report.html"].partition("<main>")
    assert "2 options set" in head and "dpo.beta=0.2" not in head and "dpo.beta=0.2" in rest


def test_what_there_is_one_of_is_in_the_singular(report):
    changed = copy.deepcopy(report)
    changed["run"]["set"], changed["counts"] = ["seed=1"], report["counts"] | {"set": 1, "tests": 1}
    changed["headline"]["wins"] = 1
    pages = pages_of(changed)
    assert "1 option set" in pages["report.html"] and "Holm over 1 test<" in pages["report.html"]
    assert "1 query won" in pages["report.md"] and "over 1 test." in pages["report.md"]
    assert "over 1 test:" in pages["report.tex"]


def test_the_same_report_gives_the_same_bytes(report, pages):
    assert pages_of(report) == pages


def test_hostile_texts_stay_texts(hostile, pages):
    page, plain = Tags(hostile["report.html"]), Tags(pages["report.html"])
    assert "script" not in page.tags and "img" not in page.tags
    assert set(page.tags) == set(plain.tags) | {"details", "summary"}
    assert "&lt;script&gt;" in hostile["report.html"]
    assert "<script>" not in hostile["report.md"].replace(r"\<script>", "")
    tables = [line for line in hostile["report.md"].splitlines() if line.startswith("|")]
    usual = [line for line in pages["report.md"].splitlines() if line.startswith("|")]
    assert len(tables) == len(usual)
    assert json.loads(hostile["report.json"])["systems"][0]["title"] == HOSTILE[0]


@pytest.mark.parametrize("kind", ["usual", "hostile"])
def test_it_fits_any_screen_and_asks_for_nothing(browser, pages, hostile, kind, tmp_path):
    path = tmp_path / "report.html"
    path.write_text({"usual": pages, "hostile": hostile}[kind]["report.html"], encoding="utf-8")
    page = browser.new_page()
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    for width in (400, 1280, 1600):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme, media in (("light", "screen"), ("dark", "screen"), ("light", "print")):
            page.emulate_media(color_scheme=scheme, media=media)
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (width, scheme, media)
    page.close()
    assert [each for each in asked if not each.startswith("data:")] == [path.as_uri()]
    assert not said
