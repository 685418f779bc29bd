"""How numbers and texts are written on every page; nothing is rounded elsewhere."""

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from markupsafe import Markup, escape

from expandr_core.evaluation.render import (
    cell,
    counted,
    format_p,
    markdown_table,
    shortened,
    signed,
)

Number = float | int | None
_P_VALUE = re.compile(r"p = [\w.-]*\w")
LONG = 320  # characters of a text that are shown at once


def score(value: Number) -> str:
    """Write a metric, with a true minus sign.

    >>> score(0.41249), score(-0.1), score(None)
    ('0.412', '−0.100', '–')
    """
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def count(value: Number) -> str:
    """Write a whole number.

    >>> count(1409551), count(None)
    ('1,409,551', '–')
    """
    return "–" if value is None else f"{value:,.0f}"


def amount(value: Number) -> str:
    """Write seconds, megabytes and the like: one digit after the point below 100.

    >>> amount(2.345), amount(1409.5), amount(None)
    ('2.3', '1,410', '–')
    """
    return "–" if value is None else f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"


def small(value: Number) -> str:
    """Write hours and other numbers that may be small.

    >>> small(0.012345), small(0.0), small(None)
    ('0.012', '0', '–')
    """
    return "–" if value is None else "0" if not value else f"{value:.3f}"


def percent(value: Number) -> str:
    """Write a percentage that is already multiplied by 100.

    >>> percent(43.416)
    '43.4 %'
    """
    return "–" if value is None else f"{value:.1f} %"


def limits(row: dict[str, Any]) -> str:
    """Write an interval.

    >>> limits({"low": 0.1, "high": 0.25}), limits({"low": None, "high": None})
    ('0.100 to 0.250', '–')
    """
    return "–" if row["low"] is None else f"{score(row['low'])} to {score(row['high'])}"


def chance(value: Number) -> str:
    """Write a p-value."""
    return "–" if value is None else format_p(value)


def day(value: str) -> str:
    """Write a time of an ISO text, as it stands there.

    >>> day("2026-11-28T22:46:31+00:00")
    '2026-11-28 22:46'
    """
    return datetime.fromisoformat(value).isoformat(sep=" ", timespec="minutes")[:16]


def opening(text: str) -> str:
    """Return the beginning of a long text, up to LONG characters, if possible whole words."""
    if len(text) <= LONG:
        return text
    whole = text[:LONG].rpartition(" ")[0]
    return whole if len(whole) > LONG / 2 else text[:LONG]


def unbroken(sentence: str) -> str:
    """Keep each p-value of a sentence on one line.

    >>> unbroken("a < b (p = 1.4e-17).")
    Markup('a &lt; b (<span class="unbroken">p = 1.4e-17</span>).')
    """
    return Markup(_P_VALUE.sub(r'<span class="unbroken">\g<0></span>', str(escape(sentence))))


FILTERS: tuple[Callable[..., str], ...] = (
    score, signed, count, counted, amount, small, percent, limits, chance, day, opening, unbroken,
    cell, markdown_table, shortened,
)  # fmt: skip
