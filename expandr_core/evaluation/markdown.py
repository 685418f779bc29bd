"""Tables, numbers and warnings of reports, as Markdown."""

import math
from typing import Any


def markdown_table(header: list[str], rows: list[list[str]], left: int) -> list[str]:
    """Render a Markdown table, aligned in the source too; the first columns to the left.

    >>> markdown_table(["system", "p"], [["a | b", "0.250"]], left=1)
    ['| system |     p |', '| ------ | ----: |', '| a \\\\| b | 0.250 |']
    """
    rows = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if place < left else "-" * (w - 1) + ":" for place, w in enumerate(widths)]
    return [line(header), line(rule), *map(line, rows)]


def format_p(value: float) -> str:
    """Format a p-value.

    >>> format_p(0.25), format_p(0.0004), format_p(3e-12), format_p(float("nan"))
    ('0.250', '4.0e-04', '3.0e-12', 'not known')
    """
    if math.isnan(value):
        return "not known"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"


def format_score(mean: float, deviation: float | None = None) -> str:
    """Format a metric, with its standard deviation if there is one.

    >>> format_score(0.41249), format_score(0.41249, 0.0049)
    ('0.412', '0.412 ± 0.005')
    """
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def warning_lines(report: dict[str, Any]) -> list[str]:
    """Render what makes the numbers of a report doubtful, if anything does, by `warnings`.

    >>> warning_lines({"warnings": ["half of the texts are empty"]})
    ['**Warning**: half of the texts are empty.', '']
    """
    return [part for each in report.get("warnings", ()) for part in (f"**Warning**: {each}.", "")]
