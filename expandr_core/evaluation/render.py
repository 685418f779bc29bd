"""A comparison as Markdown, by the template comparison.md.j2 and the filters that it uses."""

import math
import re
from typing import Any

from expandr_core.data.catalog import SHARED_CORPUS
from expandr_core.evaluation.comparison import tests_in, titles_of
from expandr_core.evaluation.metrics import MEASURES
from expandr_core.evaluation.significance import FEWEST, fewest_to_tell, name_of_tests

EFFECTS = {
    "better": "* better",
    "worse": "* worse",
    "unclear": "no difference shown",
    "equal": "equal on every query",
    "too few": "too few queries",
}


def fill(template: str, *values: dict[str, Any], **named: Any) -> str:
    """Fill a template of this package with values."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("expandr_core.evaluation"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (cell, format_p, format_score, markdown_table, shortened, signed)
    environment.filters |= {each.__name__: each for each in filters}
    return environment.get_template(template).render(*values, **named)


def render(comparison: dict[str, Any]) -> str:
    """Render comparison.json as Markdown."""
    few = [each for each in comparison["contrasts"] if each["clusters"] < FEWEST]
    return fill(
        "comparison.md.j2",
        comparison,
        titles=titles_of(comparison),
        pairs=list(
            dict.fromkeys((each["before"], each["after"]) for each in comparison["contrasts"])
        ),
        baseline=baseline_title(comparison),
        tests=tests_in(comparison),
        measures=MEASURES,
        effects=EFFECTS,
        test_name=tests_of(comparison),
        few=FEWEST if few else 0,
        least=fewest_to_tell(comparison["significance_level"], comparison["test"]),
        shared_corpus=SHARED_CORPUS,
    )


def tests_of(comparison: dict[str, Any]) -> str:
    """Name the tests of a comparison."""
    return name_of_tests(comparison["test"], [each["clusters"] for each in comparison["contrasts"]])


def baseline_title(comparison: dict[str, Any]) -> str:
    """Return what systems are compared with in a table: the one baseline, or "its baseline".

    >>> query = {"name": "query", "title": "query only", "baseline": ""}
    >>> joint = {"name": "joint", "title": "joint round 1", "baseline": "query"}
    >>> baseline_title({"systems": [query, joint]})
    'query only'
    """
    titles = titles_of(comparison)
    baselines = {system["baseline"] for system in comparison["systems"]} - {""}
    return titles[baselines.pop()] if len(baselines) == 1 else "its baseline"


def cell(text: str) -> str:
    r"""Escape a text for a cell: what would end it, or begin code, emphasis, a link or HTML.

    >>> print(cell("a | b\n <b> *c*"))
    a \| b \<b> \*c\*
    """
    return re.sub(r"([\\|`*\[<])", r"\\\1", " ".join(text.split()))


def markdown_table(lines: str, left: int) -> str:
    r"""Turn lines of cells with " | " between them, the first the header, into a Markdown table.

    Args:
        lines: empty ones are left out.
        left: so many columns are aligned to the left, the rest to the right.

    >>> print(markdown_table("system | p\na \\| b | 0.250\n", left=1))
    | system |     p |
    | ------ | ----: |
    | a \| b | 0.250 |
    """
    rows = [
        [each.strip() for each in re.split(r"(?<!\\)(?:\\\\)*\|", line)]
        for line in lines.splitlines()
        if line.strip()
    ]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    rule = ["-" * w if n < left else "-" * (w - 1) + ":" for n, w in enumerate(widths)]
    padded = [
        [pad(text, width) for pad, text, width in zip(pads, row, widths, strict=True)]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def format_p(value: float) -> str:
    """Format a p-value.

    >>> format_p(0.25), format_p(0.0004), format_p(3e-12), format_p(float("nan"))
    ('0.250', '4.0e-04', '3.0e-12', 'not known')
    """
    if math.isnan(value):
        return "not known"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def signed(value: float | None) -> str:
    """Write a difference, with a true minus sign.

    >>> signed(0.0251), signed(-0.0251), signed(None)
    ('+0.025', '−0.025', '–')
    """
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def counted(number: float, one: str, more: str = "") -> str:
    """Write how many there are; by default, more than one end in s.

    >>> counted(1, "query", "queries"), counted(1200, "query", "queries"), counted(0, "call")
    ('1 query', '1,200 queries', '0 calls')
    """
    return f"{number:,.0f} {one if number == 1 else more or f'{one}s'}"


def format_score(row: dict[str, Any], metric: str) -> str:
    """Format a metric of a row, with its standard deviation if there is one.

    >>> format_score({"map": 0.41249, "map_deviation": None}, "map")
    '0.412'
    >>> format_score({"map": 0.41249, "map_deviation": 0.0049}, "map")
    '0.412 ± 0.005'
    """
    deviation = row[f"{metric}_deviation"]
    return f"{row[metric]:.3f}" if deviation is None else f"{row[metric]:.3f} ± {deviation:.3f}"


def shortened(text: str, length: int = 80) -> str:
    """Cut a text at a length.

    >>> shortened("a red bird sings", 9)
    'a red bi…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"
