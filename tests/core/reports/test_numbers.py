"""Every number of a page is one of report.json, rounded; and no text breaks a page, whatever it is."""

import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from expandr_core.reports.pages import filled, html_of, markdown_of, tex_of
from expandr_core.reports.palette import FAMILIES
from expandr_core.reports.tex import tex

HOSTILE = (
    "<script>alert(1)</script> & <b>",
    "a | b\n\n# no heading $x$ `code` {{ run.name }} {% raw %} \\end{document} \\\\ ~^_#",
    "\u202e\u05d0\u05d1\u05d2 right to left \u2066 \u4e2d\u6587 \U0001f600 \u00fc\u0142\u017c\u0001",
    "w" * 10_000,
    "",
)
NUMBER = re.compile(r"(?<![\w.#-])[+\u2212-]?[0-9][0-9,]*(?:\.[0-9]+)?(?:e[+-][0-9]+)?(?![\w])")
NO_DIGITS = st.text(st.characters(exclude_categories=("Cs", "Nd", "Nl", "No")), max_size=80)
TEXTS = {"title", "text", "question", "before_title", "after_title", "system_title", "query_id",
         "passage_id", "data", "rule"}  # fmt: skip
COUNTED = {"round", "layer", "column", "best_round", "schema", "significance_level"}


class Visible(HTMLParser):
    """Collects what a page shows, apart from the ticks of drawings."""

    def __init__(self, page: str):
        super().__init__()
        self.shown: list[str] = []
        self.tags: list[tuple[str, Any]] = []
        self._hidden = 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))
        self._hidden += tag in ("style", "svg")

    def handle_endtag(self, tag):
        self._hidden -= tag in ("style", "svg")

    def handle_data(self, data):
        if not self._hidden:
            self.shown.append(data)


def leaves(value: Any) -> Iterator[Any]:
    """Yield all values of a report, and the lengths of its lists."""
    if isinstance(value, dict):
        yield from (str(name) for name in value)
    if isinstance(value, dict | list):
        yield len(value)
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    elif value is not None and not isinstance(value, bool):
        yield value


def unknown_numbers(shown: str, report: dict[str, Any]) -> set[str]:
    """Return the numbers of a page that are no rounding of one of the report, nor in a text of it."""
    known, texts = set[str](), list[str]()
    for each in leaves(report):
        if isinstance(each, str):
            texts.append(each)
        else:
            value = abs(each)
            known |= {f"{value:.{digits}f}" for digits in range(4)} | {f"{value:.1e}", f"{value:g}"}
    known |= {_bare(each) for each in NUMBER.findall(" ".join(texts))}
    return {each for each in NUMBER.findall(shown) if _bare(each) not in known}


def _bare(number: str) -> str:
    """Return a number without its sign and commas."""
    return number.lstrip("+-\u2212").replace(",", "")


def visible(page: str) -> str:
    return html.unescape(" ".join(Visible(page).shown))


def without_markup(page: str) -> str:
    """Return what LaTeX sets, roughly: without commands and lengths."""
    page = page.partition(r"\begin{document}")[2]
    page = re.sub(r"\\begin\{longtable\}.*", "", page)
    page = re.sub(r"\{\[\}U\+[0-9A-F]+\{\]\}", "", page).replace("$-$", "-").replace("{-}", "-")
    return re.sub(r"\\[a-zA-Z]+\*?(\{0pt\})?|[{}$]", " ", page.replace(r"\hspace{0pt}", ""))


def changed(value: Any, random: Random, texts: list[str], name: str = "") -> Any:
    """Return a report with other numbers, too large to be met by chance, and other texts."""
    if isinstance(value, dict):
        return {key: changed(each, random, texts, key) for key, each in value.items()}
    if isinstance(value, list):
        return [changed(each, random, texts, name) for each in value]
    if isinstance(value, str) and name in TEXTS:
        return random.choice(texts)
    if isinstance(value, bool | str) or value is None or name in COUNTED:
        return value
    if isinstance(value, int):
        return random.randrange(10**6, 10**9)
    return random.uniform(10**6, 10**9)


def tables(page: str) -> list[int]:
    """Return how many cells each line of a table in Markdown has."""
    return [
        len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if line.startswith("|")
    ]


@settings(max_examples=10, phases=[Phase.generate])
@given(seed=st.integers(0, 2**32), text=NO_DIGITS)
def test_whatever_the_numbers_and_texts_are_pages_show_these_numbers_and_hold_together(
    report, whole, seed, text
):
    other = changed(report, Random(seed), [*HOSTILE, text])
    page = filled("report.html.j2", other, pictures={}, graph=other["lineage"] | {"nodes": [],
                  "edges": [], "width": 1, "height": 1}, families=FAMILIES)  # fmt: skip
    tags = {tag for tag, _ in Visible(page).tags}
    assert tags <= {tag for tag, _ in Visible(whole["report.html"]).tags} | {"details", "summary"}
    assert not unknown_numbers(visible(page), other)
    page = markdown_of(other)
    assert not unknown_numbers(page.partition("```mermaid")[0], other)
    assert tables(page) == tables(whole["report.md"])
    page = tex_of(other)
    assert not unknown_numbers(without_markup(page), other)
    body = re.sub(r"\\[\\{}$&%#_]", "", page.partition("\\begin{document}")[2])
    assert page.isascii() and body.count("{") == body.count("}") and not set(body) & set("%#")


@pytest.fixture(scope="module")
def whole(report) -> dict[str, str]:
    return {
        "report.html": html_of(report),
        "report.md": markdown_of(report),
        "report.tex": tex_of(report),
    }


def test_every_number_of_every_page_is_in_the_report(report, whole):
    assert not unknown_numbers(visible(whole["report.html"]), report)
    assert not unknown_numbers(whole["report.md"].partition("```mermaid")[0], report)
    assert not unknown_numbers(without_markup(whole["report.tex"]), report)


def test_a_number_from_elsewhere_would_be_found(report, whole):
    shown = visible(whole["report.html"])
    assert unknown_numbers(shown + " 0.98765 ", report) == {"0.98765"}


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_the_document_compiles_whatever_its_texts_are(report, tmp_path):
    """Debian's texlive-latex-recommended and texlive-fonts-recommended are enough."""
    every = "".join(map(chr, [*range(32, 0x250), *range(0x2000, 0x2070), 0x2202, 0x4E2D]))
    for name, other in {
        "usual": report,
        "hostile": changed(report, Random(0), [*HOSTILE, every]),
    }.items():
        (tmp_path / f"{name}.tex").write_text(tex_of(other), encoding="utf-8")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
        assert (tmp_path / f"{name}.pdf").stat().st_size > 10_000


def test_letters_that_latex_knows_are_written_with_their_accents():
    assert tex("Łódź, Dvořák, ﬁ") == r"\L{}\'{o}d\'{z}, Dvo\v{r}\'{a}k, {[}U+FB01{]}"
